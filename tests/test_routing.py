"""Which experts are chosen for which language: scores, their control, a claim, a command."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments import route_experts
from experiments.runner import stated
from interp import cli
from interp.counting.collect import collect
from interp.counting.stats import FiringStats
from interp.inference.claims import load_claims
from interp.inference.statements import judged
from interp.models.load import load
from interp.scores.routing import Routing, language_divergence, routing_of
from tests import tiny_models
from tests.campaigns import kills


@pytest.fixture
def routing() -> Routing:
    """Three shards; six layers of which the first has no experts; the two ends differ by language,
    the three in the middle hardly."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.zeros(3, 2, 6, 4, dtype=torch.int64)
    for shard, language, layer in itertools.product(range(3), range(2), range(1, 6)):
        weight = torch.ones(4)
        if layer in (1, 5):
            weight[[language, language + 2]] = 4.0
        drawn = torch.multinomial(weight, 600, replacement=True, generator=generator)
        chosen[shard, language, layer] = torch.bincount(drawn, minlength=4)
    tokens = torch.full((3, 2), 300)
    return Routing(chosen=chosen, tokens=tokens, languages=("en", "de"))


def test_entropy_and_divergence_equal_their_definitions(routing: Routing) -> None:
    """By hand, in plain Python."""
    for layer in range(1, 6):
        shares = []
        for language in range(2):
            counts = routing.chosen[:, language, layer].sum(0).tolist()
            shares.append([n / sum(counts) for n in counts])
            entropy = -sum(p * math.log(p) for p in shares[-1] if p)
            assert routing.entropy[language, layer].item() == pytest.approx(entropy)
        mean = [sum(column) / 2 for column in zip(*shares, strict=True)]
        bits = sum(p * math.log(p / m) for row in shares for p, m in zip(row, mean, strict=True))
        assert routing.divergence.value[layer].item() == pytest.approx(bits / 2)


def test_limits() -> None:
    alike = torch.tensor([[[0.25] * 4], [[0.25] * 4]]).double()
    apart = torch.tensor([[[0.5, 0.5, 0, 0]], [[0, 0, 0.5, 0.5]]]).double()
    assert language_divergence(alike).item() == 0
    assert language_divergence(apart).item() == pytest.approx(math.log(2))
    counts = torch.tensor([[[[7, 0, 0, 0]], [[2, 2, 2, 2]]]])
    one = Routing(chosen=counts, tokens=torch.tensor([[7, 8]]), languages=("en", "de"))
    assert one.entropy.flatten().tolist() == pytest.approx([0, math.log(4)])


def test_a_preference_is_the_share_less_its_mean_over_languages(routing: Routing) -> None:
    """By hand, in plain Python; the two ends have two experts of their own for each language, the
    decoys between none."""
    estimate, frame = routing.preference, routing.expert_frame()
    for layer, expert in itertools.product(range(1, 6), range(4)):
        counts = routing.chosen[:, :, layer].sum(0).tolist()
        shares = [row[expert] / sum(row) for row in counts]
        for language, share in enumerate(shares):
            value = estimate.value[language, layer, expert].item()
            assert value == pytest.approx(share - sum(shares) / 2)
            assert (estimate.low[language, layer, expert] > 0.05) == (
                layer in (1, 5) and expert in (language, language + 2)
            )
            code = routing.languages[language]
            (row,) = frame[
                (frame["language"] == code)
                & (frame["layer"] == layer)
                & (frame["expert"] == expert)
            ].to_dict("records")
            assert row["preference"] == pytest.approx(value)
            assert row["tokens"] == counts[language][expert]
    assert estimate.value[:, 0].isnan().all()


def test_shuffled_languages_tell_chance_from_difference(routing: Routing) -> None:
    frame = routing.layer_frame(torch.Generator().manual_seed(0), n_draws=39)
    assert frame["divergence"].isna().tolist() == [True, *[False] * 5]
    assert frame["p_value"].isna().tolist() == [True, *[False] * 5]
    for layer in (1, 5):
        row = frame.loc[layer]
        assert row["divergence_low"] > 0.1
        assert row["p_value"] <= 0.2  # 2 of the 20 ways to divide six shards are the observed one
        assert row["shuffled"] < row["divergence"] / 2
    assert frame["divergence"][2:5].max() < 0.01
    again = routing.layer_frame(torch.Generator().manual_seed(0), n_draws=39)
    assert again.equals(frame)
    assert not routing.layer_frame(torch.Generator().manual_seed(1), n_draws=39).equals(frame)


def test_shuffling_moves_whole_shards(routing: Routing) -> None:
    drawn = routing.shuffled(torch.Generator().manual_seed(0))
    assert not drawn.chosen.equal(routing.chosen)
    before, after = (
        sorted(piece.flatten().tolist() for shard in part.chosen for piece in shard)
        for part in (routing, drawn)
    )
    assert before == after


def test_a_u_over_depth_is_seen_and_its_opposite_is_not(routing: Routing) -> None:
    estimate = routing.ends_less_middle
    ends, middle = routing.divergence.value[[1, 5]], routing.divergence.value[2:5]
    assert estimate.value.item() == pytest.approx((ends.min() - middle.mean()).item())
    assert estimate.low > 0
    slope = dataclasses.replace(routing, chosen=routing.chosen[:, :, [0, 1, 5, 2, 3, 4]])
    assert slope.divergence.value[1:3].min() > 10 * slope.divergence.value[3:].max()
    assert slope.ends_less_middle.high < 0  # one end alone is no U
    inverted = dataclasses.replace(routing, chosen=routing.chosen[:, :, [0, 2, 1, 5, 3, 4]])
    assert inverted.ends_less_middle.high < 0
    short = dataclasses.replace(routing, chosen=routing.chosen[:, :, :3])
    with pytest.raises(ValueError, match="2 layers have experts"):
        _ = short.ends_less_middle


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blind", "expected"),
    [((1,), "holds"), ((0,), "does not hold"), ((0, 2), "does not hold")],
)
def test_a_u_planted_in_a_model_is_seen_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    blind: tuple[int, ...],
    expected: str,
) -> None:
    """Routers that are blind give all tokens the same experts. That of the middle layer leaves
    a U; that of the first, or both ends, none."""
    folder = tiny_models.build("qwen3_moe", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in blind:
            model.model.layers[layer].mlp.gate.weight.zero_()
    model.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    _, config = route_experts.experiment.presets["tiny"]
    study = dataclasses.replace(config.study, model=str(folder), block_length=32)
    route_experts.experiment.run(dataclasses.replace(config, study=study))
    (claim,) = load_claims(next(tmp_path.rglob("claims.json")))
    assert claim.verdict == expected
    assert claim.control < claim.value or expected != "holds"
    table = pd.read_csv(next(tmp_path.rglob("routing.csv")))
    assert table["divergence"][list(blind)].abs().max() < 1e-12
    capsys.readouterr()


def test_languages_that_do_not_differ_leave_no_u(routing: Routing) -> None:
    """The shards of one language, under two names: what is left is the control."""
    chosen = routing.chosen[:, :1].repeat(4, 2, 1, 1)
    generator = torch.Generator().manual_seed(2)
    shape = (12, 2, *chosen.shape[2:])
    drawn = torch.poisson(chosen[:12].double(), generator=generator).long().reshape(shape)
    same = Routing(chosen=drawn, tokens=torch.full((12, 2), 900), languages=("en", "de"))
    measured = route_experts.measure(same, generator, 99)
    (claim,) = judged(stated("route_experts"), {"routing-u-shape": measured}, "a model", "{claim}")
    assert claim.verdict != "holds"


def test_the_command_writes_what_the_figure_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(tiny_models.build("deepseek_v3", tmp_path / "model"))
    run = collect(model, kills.blocks(model, 20), tmp_path / "run", progress=False)
    cli.main(["routing", str(tmp_path / "run"), "--draws", "19", "--dry-run"])
    n_experts = routing_of(run.firing).chosen.shape[3]
    times = 19 + 3 * (1 + run.firing.n_shards)
    assert f"{times} passes over {3 * n_experts} experts" in capsys.readouterr().out
    assert not (tmp_path / "run" / "routing.csv").exists()
    cli.main(["routing", str(tmp_path / "run"), "--draws", "19", "--json"])
    out, err = capsys.readouterr()
    expected = routing_of(run.firing)
    rows = json.loads(out)
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert rows[0]["divergence"] is None  # a dense layer
    assert rows[2]["divergence"] == pytest.approx(expected.divergence.value[2].item())
    assert rows[1]["entropy"] == pytest.approx(expected.entropy[:, 1].mean().item())
    assert err.splitlines()[-1] == f"Next: interp find {tmp_path / 'run'}"
    shares = pd.read_csv(tmp_path / "run" / "experts.csv")
    assert shares["tokens"].sum() == expected.chosen.sum()
    cli.main(["figure", str(tmp_path / "run"), "routing", "--format", "png"])
    drawn = pd.read_csv(tmp_path / "run" / "figures" / "routing.csv")
    assert drawn["divergence"][1] == pytest.approx(rows[1]["divergence"])
    cli.main(["figure", str(tmp_path / "run"), "chosen_experts", "--format", "png"])
    drawn = pd.read_csv(tmp_path / "run" / "figures" / "chosen_experts.csv")
    assert drawn["preference"].tolist() == pytest.approx(
        expected.preference.value.flatten().tolist(), nan_ok=True
    )


def test_runs_without_experts_or_shards_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = FiringStats(torch.ones(2, 2, 1, 3).long(), torch.full((2, 2), 9), ("en", "de"))
    for stats, why in ((dense, "a model without experts"), (dense.shards([0]), "one shard")):
        stats.save(tmp_path / "firing.safetensors")
        with pytest.raises(SystemExit) as stop:
            cli.main(["routing", str(tmp_path)])
        assert stop.value.code == 2
        assert why in capsys.readouterr().err
