"""interp stability: one table of everything a selection hangs on, and a sentence about it."""

from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
import torch

from interp.commands.stability import Stability, meaning
from interp.counting.stats import FiringStats
from interp.selections.agreement import predicted_agreement
from interp.selections.select import select_by_entropy
from interp.selections.stability import across_runs, measure_stability

CODES = ("en", "de", "zh")


def save_run(folder: Path, seed: int, noise: float = 0.25, model: str = "one") -> FiringStats:
    """Neurons with rates of their own, which scatter from shard to shard and from run to run."""
    generator = torch.Generator().manual_seed(7)
    rate = torch.rand(3, 2, 400, generator=generator) ** 3
    generator = torch.Generator().manual_seed(seed)
    scatter = (noise * torch.randn(6, 3, 2, 400, generator=generator)).exp()
    fired = ((rate * scatter).clamp_max(1) * 1000).round().long()
    stats = FiringStats(fired=fired, tokens=torch.full((6, 3), 1000), languages=CODES)
    stats.save(folder / "firing.safetensors", {"model": {"weights": model}})
    return stats


@pytest.fixture
def runs(tmp_path: Path) -> tuple[FiringStats, FiringStats]:
    return save_run(tmp_path / "wikipedia", 0), save_run(tmp_path / "news", 1)


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path).set_index(["change", "language"])


@pytest.mark.slow
def test_the_table_holds_the_text_the_settings_the_languages_and_other_runs(
    runs, tmp_path: Path, capsys
):
    stats, news = runs
    Stability(
        tmp_path / "wikipedia",
        others=(tmp_path / "news",),
        fraction=0.05,
        busy_quantile=0.9,
        fractions=(0.02, 0.05),
        busy_quantiles=(0.9, 0.95),
    ).run()
    shown, found = capsys.readouterr().out, table(tmp_path / "wikipedia" / "stability.csv")
    changes = ["half of the text", "one shard left out", "fraction 0.02", "busy quantile 0.95"]
    changes += ["without en", "without de", "without zh", "run news"]
    assert list(dict.fromkeys(found.index.get_level_values(0))) == changes
    assert [line.split("  ")[0] for line in shown.splitlines()[3 : 3 + len(changes)]] == changes

    def select(part: FiringStats):
        return select_by_entropy(part, 0.05, 0.9)

    generator = torch.Generator().manual_seed(0)
    first = measure_stability(stats, select, generator).to_frame().set_index(["change", "language"])
    for change in ("half of the text", "one shard left out", "without de"):
        pd.testing.assert_frame_equal(found.loc[[change]], first.loc[[change]])
    beside = across_runs(stats, {"run news": news}, select).to_frame()
    pd.testing.assert_frame_equal(
        found.loc[["run news"]], beside.set_index(["change", "language"]), check_dtype=False
    )
    nested = select_by_entropy(stats, 0.02, 0.9).counts()["en"] / select(stats).counts()["en"]
    assert found.loc[("fraction 0.02", "en"), "jaccard"] == pytest.approx(nested)
    again = predicted_agreement(stats, select, torch.Generator().manual_seed(0))
    assert f"one from as much other text would reach about {again:.2f}" in shown
    assert "The change with the largest effect is" in shown


@pytest.mark.slow
def test_settings_are_those_that_the_method_has(runs, tmp_path: Path, capsys):
    cases: tuple[tuple[Literal["lap", "cumulative-mass"], set[str]], ...] = (
        ("lap", {"fraction 0.005", "fraction 0.02", "fraction 0.05"}),
        ("cumulative-mass", {"share 0.9", "share 0.99"}),
    )
    for method, expected in cases:
        Stability(tmp_path / "news", method=method, splits=2).run()
        found = table(tmp_path / "news" / f"stability-{method}.csv")
        changes = set(found.index.get_level_values(0))
        assert {each for each in changes if each.split()[0] in ("fraction", "busy", "share")} == (
            expected
        )
    assert "busy" not in capsys.readouterr().out


def test_a_setting_that_selects_nothing_is_left_out_and_said_to_be(runs, tmp_path: Path, capsys):
    Stability(tmp_path / "news", fraction=0.05, fractions=(0.9,), busy_quantiles=(), splits=2).run()
    assert "fraction 0.9 is left out: 720 neurons are requested" in capsys.readouterr().out
    found = table(tmp_path / "news" / "stability.csv")
    assert "fraction 0.9" not in found.index.get_level_values(0)


@pytest.mark.slow
def test_other_weights_are_named_and_one_shard_is_refused(runs, tmp_path: Path, capsys):
    save_run(tmp_path / "tuned", 2, model="two")
    settings = {"fraction": 0.05, "fractions": (), "busy_quantiles": (), "splits": 2}
    Stability(tmp_path / "news", others=(tmp_path / "wikipedia",), **settings).run()
    assert "weights other than" not in capsys.readouterr().out
    Stability(tmp_path / "news", others=(tmp_path / "tuned",), **settings).run()
    assert "was collected with weights other than" in capsys.readouterr().out
    runs[0].shards([0]).save(tmp_path / "one" / "firing.safetensors", {})
    with pytest.raises(ValueError, match="The run has only one shard"):
        Stability(tmp_path / "one").run()


def test_how_far_to_trust_follows_from_what_a_repetition_would_share(runs):
    found = measure_stability(
        runs[0], lambda part: select_by_entropy(part, 0.05, 0.9), torch.Generator().manual_seed(0)
    )
    for again, words in (
        (0.8, "you can name single neurons"),
        (0.5, "a single one is not a finding"),
        (0.49, "one draw of many"),
    ):
        assert words in meaning(found, again)
    less = found.jaccard.nanmean(dim=1) / found.most.nanmean(dim=1)  # of what the sizes allow
    furthest = 2 + int(less[2:].argmin())
    assert f"largest effect is {found.changes[furthest]}: " in meaning(found, 0.5)
