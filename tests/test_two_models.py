"""Two models of one shape: neurons of one in the other, and rates and effects neuron by neuron."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from interp import cli
from interp.counting.expert_tokens import ExpertTokens
from interp.counting.stats import FiringStats
from interp.evaluations.effect_change import effect_change
from interp.evaluations.perplexity import PerplexityMatrix
from interp.models.units import LayerUnits, UnitLayout
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.two_models import rate_change
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up

KNOBS = ("--block-length", "16", "--n-shards", "4", "--hygiene", "off", "--moments")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two models of one shape, and of one of another architecture."""
    folder = tmp_path_factory.mktemp("two-models")
    (folder / "text").mkdir()
    for code, lines in made_up().items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    kinds = {"base": ("qwen2", 0), "instruct": ("qwen2", 1), "else": ("llama", 0)}
    for name, (kind, seed) in kinds.items():
        model = tiny_models.build(kind, folder / f"model-{name}", seed=seed)
        reading = ["--model", str(model), "--text", str(folder / "text"), *KNOBS]
        run = str(folder / "runs" / name)
        cli.main(["collect", *reading, "--out", run])
        cli.main(["find", run, "--fraction", "0.1", "--busy-quantile", "0.5"])
    return folder / "runs"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------- neurons of the other model


@pytest.mark.slow
def test_neurons_of_the_base_are_edited_in_the_instruct_model_and_said(runs, capsys):
    base, instruct = str(runs / "base"), str(runs / "instruct")
    arguments = ["deactivate", instruct, "--neurons-of", base, "--n-draws", "1"]
    cli.main(arguments)
    said = capsys.readouterr().out
    assert "NEURONS OF ANOTHER MODEL: they were found in" in said
    assert f"model {runs.parent / 'model-instruct'}" in said
    folder = runs / "instruct" / "deactivate-of-base"
    matrix = PerplexityMatrix.load(folder / "matrix.safetensors")
    sizes = NeuronSelection.from_json(runs / "base" / "neurons.json").counts()
    assert dict(zip(matrix.off, matrix.neurons, strict=True)) == sizes
    assert set(pd.read_csv(folder / "matrix.csv")["neurons_of"]) == {
        str(runs.parent / "model-base")
    }
    cli.main(["deactivate", instruct, "--n-draws", "1"])
    own = pd.read_csv(runs / "instruct" / "deactivate" / "matrix.csv")
    assert "neurons_of" not in own.columns
    assert matrix.neurons_of == str(runs.parent / "model-base")  # as in the file
    assert "model-base" in matrix._repr_html_()
    assert "NEURONS OF" not in capsys.readouterr().out


@pytest.mark.slow
def test_steering_with_the_neurons_of_the_base_uses_the_means_of_the_run(runs, capsys):
    arguments = ["steer", str(runs / "instruct"), "--neurons-of", str(runs / "base"), "--to", "de"]
    cli.main([*arguments, "--n", "2", "--max-new-tokens", "4"])
    assert "NEURONS OF ANOTHER MODEL" in capsys.readouterr().out
    folder = runs / "instruct" / "steer-of-base"
    for name in ("rates", "texts"):
        assert "neurons_of" in pd.read_csv(folder / f"{name}.csv").columns


def test_what_is_baked_is_the_neurons_of_the_base_and_its_card_says_so(runs, tmp_path):
    base, instruct = runs / "base", runs / "instruct"
    model = interp.load(runs.parent / "model-instruct")
    theirs, own = (NeuronSelection.from_json(run / "neurons.json") for run in (base, instruct))
    assert not torch.equal(theirs["de"], own["de"])
    arguments = [str(instruct), "--neurons-of", str(base), "--language", "de", "--out"]
    cli.main(["bake", *arguments, str(tmp_path / "baked")])
    baked = interp.load(tmp_path / "baked")
    for layer in range(model.n_layers):
        gone = (baked.w_out(layer) == 0).all(dim=1)
        assert torch.equal(gone, theirs["de"][layer])
    assert "found in another model of the same shape, model-base" in (
        (tmp_path / "baked" / "README.md").read_text()
    )
    pytest.importorskip("peft")
    cli.main(["adapter", *arguments, str(tmp_path / "adapter")])
    assert "model-base" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_selection_on_another_model_is_the_same_and_every_table_says_so(runs):
    model = interp.load(runs.parent / "model-instruct")
    theirs = NeuronSelection.from_json(runs / "base" / "neurons.json")
    there = theirs.on(model, "the base")
    assert there == theirs
    assert (theirs.neurons_of, theirs.on(model).neurons_of) == ("", "another model")
    assert there.neurons().languages_only(["de"]).neurons_of == "the base"
    item = interp.text.Item("sum", "One and one", (" two", " three"), 0)
    task = interp.text.Task("sums", "en", (item, item._replace(id="again")))
    ablated = interp.evaluations.ablate_tasks(model, [task], there, n_draws=1, progress=False)
    assert set(ablated.to_frame()["neurons_of"]) == {"the base"}
    narrow = NeuronSelection(theirs.mask[:, :, 1:], theirs.languages)
    with pytest.raises(ValueError, match="use the model it was made with"):
        narrow.on(model)


def test_neurons_of_another_architecture_are_refused(runs, capsys):
    arguments = ["deactivate", str(runs / "instruct"), "--neurons-of", str(runs / "else")]
    said = refused(arguments, capsys)
    assert "of a LlamaForCausalLM" in said
    assert "is a Qwen2ForCausalLM" in said


# ---------------------------------------------------------------- rates


def counts(seed: int, n_shards: int = 5) -> FiringStats:
    generator = torch.Generator().manual_seed(seed)
    fired = torch.randint(0, 40, (n_shards, 2, 2, 6), generator=generator)
    tokens = torch.randint(40, 60, (n_shards, 2), generator=generator)
    return FiringStats(fired, tokens, ("en", "de"))


def slow_rates(stats: FiringStats, code: str, left_out: int | None = None) -> list[float]:
    """Rates of all neurons of a label, in plain Python, without one shard."""
    row = stats.languages.index(code)
    shards = [shard for shard in range(stats.n_shards) if shard != left_out]
    tokens = sum(int(stats.tokens[shard, row]) for shard in shards)
    return [
        sum(int(stats.fired[shard, row, layer, neuron]) for shard in shards) / tokens
        for layer in range(2)
        for neuron in range(6)
    ]


def slow_correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    squares = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return both / math.sqrt(squares)


def slow_error(values: list[float]) -> float:
    n, mean = len(values), sum(values) / len(values)
    return math.sqrt((n - 1) / n * sum((value - mean) ** 2 for value in values))


@pytest.mark.parametrize("paired", [True, False])
def test_changes_and_correlations_are_those_of_the_slow_definition(paired):
    a, b = counts(0), counts(1)
    found = rate_change(a, b, paired=paired)
    n, shards = 3, range(5)  # the fourth neuron of the first layer
    for row, code in enumerate(found.languages):
        first, second = slow_rates(a, code), slow_rates(b, code)
        assert found.change.value[row, 0, n].item() == pytest.approx(second[n] - first[n])
        assert found.correlation.value[row].item() == pytest.approx(slow_correlation(first, second))
        without_a = [slow_rates(a, code, shard) for shard in shards]
        without_b = [slow_rates(b, code, shard) for shard in shards]
        if paired:
            pairs = list(zip(without_a, without_b, strict=True))
            error = slow_error([y[n] - x[n] for x, y in pairs])
            of_correlation = slow_error([slow_correlation(x, y) for x, y in pairs])
        else:
            errors = (slow_error([rates[n] for rates in run]) for run in (without_a, without_b))
            error = math.hypot(*errors)
            of_correlation = math.hypot(
                slow_error([slow_correlation(x, second) for x in without_a]),
                slow_error([slow_correlation(first, y) for y in without_b]),
            )
        assert found.change.standard_error[row, 0, n].item() == pytest.approx(error)
        assert found.correlation.standard_error[row].item() == pytest.approx(of_correlation)
        half = (found.change.high - found.change.low)[row, 0, n].item() / 2
        assert half == pytest.approx(2.776445 * error, rel=1e-4)  # t with 4 degrees of freedom


def test_a_model_compared_with_itself_has_not_changed_and_pairing_knows_it():
    a = counts(0)
    same = rate_change(a, a, paired=True)
    assert same.correlation.value.tolist() == pytest.approx([1.0, 1.0])
    assert not same.differs.any()
    assert (same.change.high == 0).all()
    unpaired = rate_change(a, a)
    assert (unpaired.change.high > 0).all()


def test_a_planted_change_is_found_and_a_decoy_is_not():
    generator = torch.Generator().manual_seed(2)
    fired = torch.full((20, 1, 1, 3), 500) + torch.randint(
        -20, 20, (20, 1, 1, 3), generator=generator
    )
    tokens = torch.full((20, 1), 1000)
    changed = fired.clone()
    changed[..., 1] += 60  # the planted neuron; the third is noise of the same size but no change
    changed[..., 2] += torch.randint(-60, 60, (20, 1, 1), generator=generator)
    found = rate_change(FiringStats(fired, tokens, ("de",)), FiringStats(changed, tokens, ("de",)))
    assert found.differs[0, 0].tolist() == [False, True, False]


def test_rates_of_mixtures_divide_by_the_tokens_that_an_expert_saw():
    """A planted neuron fires on all tokens of its expert, then on half of them; a decoy fires half
    as often because its expert is chosen half as often; a third sees too few tokens."""
    layout = UnitLayout((LayerUnits(1, 3, 1),))
    tokens = torch.full((4, 1), 1000)
    routed = torch.tensor([400, 400, 20]).repeat(4, 1, 1, 1)
    routed += torch.arange(4)[:, None, None, None]
    moved = routed.clone()
    moved[..., 1] //= 2
    fired = torch.cat([torch.full((4, 1, 1, 1), 500), routed], dim=-1)
    after = torch.cat([torch.full((4, 1, 1, 1), 500), moved], dim=-1)
    after[..., 1] //= 2
    before, later = (
        FiringStats(counts, tokens, ("de",), ExpertTokens(layout, seen, tokens))
        for counts, seen in ((fired, routed), (after, moved))
    )
    found = rate_change(before, later, paired=True)
    assert found.before[0, 0].tolist()[:3] == [0.5, 1.0, 1.0]
    assert found.change.value[0, 0].tolist()[:3] == pytest.approx([0.0, -0.5, 0.0], abs=0.002)
    assert found.change.value[0, 0, 3].isnan()
    assert found.differs[0, 0].tolist() == [False, True, False, False]
    summary = found.summary()
    assert summary["differs"][0] == pytest.approx(1 / 3)
    assert summary["correlation"][0] == pytest.approx(
        slow_correlation([0.5, 1.0, 1.0], (found.before + found.change.value)[0, 0, :3].tolist())
    )
    table = found.to_frame()
    assert table["expert"].fillna(-1).tolist() == [-1, 0, 1]
    assert table["neuron"].tolist() == [0, 0, 0]
    dense = FiringStats(fired, tokens, ("de",))
    with pytest.raises(ValueError, match="The models have other experts"):
        rate_change(before, dense)
    with pytest.raises(ValueError, match="fire by other values \\(gate, output\\)"):
        rate_change(dense, FiringStats(fired, tokens, ("de",), fires_by="output"))


def test_other_shapes_and_other_labels_are_refused():
    a, b = counts(0), counts(1)
    narrow = FiringStats(b.fired[..., :4].clone(), b.tokens, b.languages)
    with pytest.raises(ValueError, match="2 layers of 6 neurons and 2 of 4"):
        rate_change(a, narrow)
    other = FiringStats(b.fired, b.tokens, ("fr", "es"))
    with pytest.raises(ValueError, match="no label in common"):
        rate_change(a, other)


# ---------------------------------------------------------------- effects and the command


@pytest.mark.slow
def test_the_change_of_an_effect_is_the_difference_of_the_increases(runs):
    files = []
    for name in ("base", "instruct"):
        out = runs / name / "deactivate"
        if not (out / "matrix.safetensors").is_file():
            cli.main(["deactivate", str(runs / name), "--n-draws", "1"])
        files.append(out / "matrix.safetensors")
    a, b = map(PerplexityMatrix.load, files)
    paired, unpaired = effect_change(a, b, paired=True), effect_change(a, b)
    assert paired["language"].tolist() == list(a.off)
    for row, code in enumerate(a.off):
        column = a.languages.index(code)
        first, second = (matrix.increase.value[row, column].item() for matrix in (a, b))
        assert paired["before"][row] == pytest.approx(first)
        assert paired["change"][row] == pytest.approx(second - first)
        halves = (matrix.increase for matrix in (a, b))
        half = math.hypot(*((each.high - each.low)[row, column].item() / 2 for each in halves))
        assert unpaired["change_high"][row] - unpaired["change"][row] == pytest.approx(half)


@pytest.mark.slow
def test_the_command_compares_two_models_neuron_by_neuron(runs, tmp_path, capsys):
    out = tmp_path / "pairs.csv"
    for name in ("base", "instruct"):
        cli.main(["deactivate", str(runs / name), "--n-draws", "1"])
    capsys.readouterr()
    cli.main(["compare", str(runs / "base"), str(runs / "instruct"), "--out", str(out)])
    said = capsys.readouterr().out
    assert "Firing rates of the same neurons, B against A (the same text)" in said
    assert "own neurons off" in said
    frame = pd.read_csv(tmp_path / "pairs-neurons.csv")
    assert len(frame) == 3 * 3 * 160
    selection = NeuronSelection.from_json(runs / "base" / "neurons.json")
    for code in LANGUAGES:
        rows = frame[frame["language"] == code]
        assert rows["in_A"].sum() == selection.counts()[code]
    cli.main(["compare", str(runs / "base"), str(runs / "base")])
    assert "Firing rates" not in capsys.readouterr().out
