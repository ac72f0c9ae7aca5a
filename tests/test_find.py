"""interp find and interp compare: every method's selection, and what is said when one cannot be."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from interp import cli
from interp.commands.find import (
    Find,
    by_part,
    headings,
    parts_of_depth,
    show_selection,
    summary,
)
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.run import Run
from interp.counting.statistics import OF_NEURONS, option_of
from interp.counting.stats import ActivationMoments, FiringStats
from interp.models.load import load
from interp.scores.average_precision import Precision, measure_precision
from interp.scores.baselines import heaviest_weight, mean_removal_effect
from interp.scores.methods import METHODS, Settings
from interp.selections.agreement import jaccard_between
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import (
    select,
    select_by_entropy,
    select_by_precision,
    select_by_value_entropy,
)
from interp.selections.stability import chance_jaccard
from interp.text.reading import read_sentences
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up

N_UNITS = tiny_models.N_LAYERS * tiny_models.D_MLP


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, text, and a run over it line by line that kept all that any method needs."""
    folder = tmp_path_factory.mktemp("find")
    tiny_models.build("qwen2", folder / "model")
    (folder / "text").mkdir()
    for code, lines in made_up().items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    collect_into(folder, "run", "--sentences", "pre", "mlp_out", "--moments")
    return folder


def collect_into(folder: Path, out: str, *more: str) -> None:
    cli.main(
        [
            *("collect", str(folder / "model"), "--text", str(folder / "text")),
            *("--out", str(folder / out), "--languages", *LANGUAGES),
            *("--block-length", "64", "--n-shards", "4", "--hygiene", "off", *more),
        ]
    )


def find(place: Path, method: str, *more: str, run: str = "run") -> NeuronSelection:
    cli.main(["find", str(place / run), "--method", method, *more])
    return NeuronSelection.from_json(place / run / f"neurons-{method}.json")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence on standard error, after checking the exit code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("interp: ")
    return said[-1]


def counts(place: Path) -> FiringStats:
    return Run.open(place / "run").firing


def moments(place: Path) -> ActivationMoments:
    return Run.open(place / "run").moments


def by_score(selection: NeuronSelection, score: torch.Tensor, n: int) -> bool:
    """Each language's n neurons of the highest score, in plain Python."""
    for row, code in enumerate(selection.languages):
        places = [(layer, unit) for layer in range(score.shape[1]) for unit in range(160)]
        best = sorted(places, key=lambda p, row=row: (-score[row][p], *p))[:n]
        if set(best) != {tuple(each) for each in selection[code].nonzero().tolist()}:
            return False
    return True


# ---------------------------------------------------------------- collecting sentences


def test_sentences_are_averaged_line_by_line(place: Path):
    means = Run.open(place / "run").sentence_means
    assert means.kinds == ("pre", "mlp_out")
    model = load(place / "model")
    corpora = read_sentences(place / "text", LANGUAGES, model, n_shards=4, hygiene="off")
    assert len(means.labels) == sum(len(rows.ids) for rows in corpora.rows.values())
    assert counts(place).tokens.sum(0).tolist() == list(corpora.tokens().values())


@pytest.mark.slow
def test_lines_that_are_too_long_are_left_out_and_counted(place: Path, capsys):
    collect_into(place, "few", "--sentences", "pre", "--n-sentences", "20")
    few = Run.open(place / "few").sentence_means
    assert few.labels.bincount().tolist() == [20, 20, 20]
    capsys.readouterr()
    collect_into(place, "short", "--sentences", "pre", "--block-length", "40")
    corpora = read_sentences(
        place / "text", LANGUAGES, load(place / "model"), max_length=40, n_shards=4, hygiene="off"
    )
    kept = Run.open(place / "short").sentence_means.labels.bincount().tolist()
    assert kept == [len(rows.ids) for rows in corpora.rows.values()]
    assert min(corpora.too_long.values()) > 0
    told = ", ".join(f"{code} {n}" for code, n in corpora.too_long.items())
    assert f"longer than 40 tokens): {told}" in capsys.readouterr().out


def test_special_tokens_count_in_sentence_means_where_asked_for(place: Path):
    """The definition, sentence by sentence; counts of firing stay as they are."""
    model = load(place / "model")
    corpora = read_sentences(
        made_up(8), LANGUAGES, model, n_shards=1, bos="document", hygiene="off"
    )
    found, fired = {}, {}
    for special in (False, True):
        keep = Keep(sentence_means=("pre",), special_tokens=special)
        run = collect(model, corpora, keep=keep, progress=False)
        fired[special], found[special] = run.firing.fired, run.sentence_means.read("pre", 1)
    assert torch.equal(fired[True], fired[False])
    rows = corpora.rows["de"]
    for number in range(len(rows.ids)):
        ids = rows.ids[number : number + 1, : int(rows.length[number])].long()
        seen = []
        hook = (model.site(1, "pre"), lambda values, hook, seen=seen: seen.append(values[0]))
        with model.hooks([hook]):
            model.body(ids)
        for special, first in ((False, 1), (True, 0)):
            mean = seen[0][first:].mean(dim=0)
            assert torch.allclose(found[special][number], mean, atol=1e-4)
    assert not torch.allclose(found[True], found[False], atol=1e-2)


def test_a_run_without_special_tokens_is_planned_as_it_always_was(place: Path):
    plan = json.loads((place / "run" / "run.json").read_text())
    assert plan["wanted"] == {"moments": True, "sentence_means": ["pre", "mlp_out"], "signs": False}


def test_options_of_sentences_go_with_sentences(place: Path, tmp_path: Path, capsys):
    arguments = ["collect", str(place / "model"), "--text", "babel", "--out", str(tmp_path)]
    for more in (["--n-sentences", "5"], ["--special-tokens"]):
        assert "need --sentences" in refused([*arguments, *more], capsys)
    said = refused([*arguments, "--sentences", "pre", "--tokens", "5000"], capsys)
    assert "--sentences reads line by line" in said


# ---------------------------------------------------------------- find


def test_lape_is_what_is_found_unless_something_else_is_asked_for(place: Path):
    cli.main(["find", str(place / "run"), "--fraction", "0.1", "--busy-quantile", "0.6"])
    found = NeuronSelection.from_json(place / "run" / "neurons.json")
    assert found == select_by_entropy(counts(place), 0.1, 0.6)


def test_precision_takes_the_best_and_the_worst_of_all_sites(place: Path, capsys):
    found = find(place, "precision", "--n", "40")
    means = Run.open(place / "run").sentence_means
    assert found == select_by_precision(measure_precision(means), 40)
    assert found.sites == (("pre", 160), ("mlp_out", 64))
    assert set(found.counts().values()) == {40}
    sites = {site: int(mask.sum()) for site, mask in found.units("de").items()}
    shown = capsys.readouterr().out
    assert f"de  pre {sites['pre']}, mlp_out {sites['mlp_out']}" in shown
    stored = Precision.load(place / "run" / "precision.safetensors")
    assert select_by_precision(stored, 40) == found
    top = find(place, "precision", "--n", "40", "--which", "top")
    assert set(top.counts().values()) == {20}
    assert (top & found) == top
    some = find(place, "precision")  # a hundredth of 3 x 224 units, in pairs
    assert set(some.counts().values()) == {6}


def test_lap_takes_the_neurons_that_fire_most_often(place: Path, capsys):
    found = find(place, "lap", "--n", "15")
    assert by_score(found, counts(place).rate, 15)
    assert "From as much other text" in capsys.readouterr().out
    assert set(find(place, "lap").counts().values()) == {round(0.01 * N_UNITS)}


def test_removal_takes_the_neurons_whose_absence_is_felt_most(place: Path, capsys):
    found = find(place, "removal", "--n", "12")
    effect = mean_removal_effect(moments(place), load(place / "model"))
    assert by_score(found, effect, 12)
    assert "A repetition" not in capsys.readouterr().out  # moments are not kept by shard


def test_lave_is_lape_of_mean_values(place: Path):
    found = find(place, "lave", "--fraction", "0.05", "--busy-quantile", "0.7")
    assert found == select_by_value_entropy(moments(place), 0.05, 0.7)
    assert found != select_by_entropy(counts(place), 0.05, 0.7)


def test_random_neurons_come_from_the_seed(place: Path):
    first = find(place, "random", "--n", "30", "--seed", "1")
    assert set(first.counts().values()) == {30}
    assert find(place, "random", "--n", "30", "--seed", "1") == first
    assert find(place, "random", "--n", "30", "--seed", "2") != first


@pytest.mark.slow
def test_entropy_less_the_peak_uses_the_heaviest_weight_unless_one_is_given(place: Path):
    settings = ("--fraction", "0.05", "--busy-quantile", "0.9")
    rate = counts(place).rate
    heaviest = find(place, "entropy-less-peak", *settings)
    given = ("--weight", str(heaviest_weight(rate, 0.05, 0.9)))
    assert find(place, "entropy-less-peak", *settings, *given) == heaviest
    assert (heaviest.languages_per_neuron() < 3).all()
    assert find(place, "entropy-less-peak", *settings, "--weight", "3") != heaviest


@pytest.fixture(scope="module")
def full(place: Path) -> Path:
    of_neurons = map(option_of, OF_NEURONS)
    more = ("--attention", "hooked", "--units", "heads", "head-effects", "dimensions")
    collect_into(place, "full", "--sentences", "pre", "post", *of_neurons, *more)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_registry_can_be_asked_for(full: Path, name: str):
    method, run = METHODS[name], Run.open(full / "full")
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert set(method.options) <= fields
    sized = {"n": 10} if "n" in method.options else {}
    selection = select(run, name, load(full / "model"), **sized)
    options = ["--n", "10"] if sized else []
    out = str(full / "chosen.json")
    cli.main(["find", str(full / "full"), "--method", name, *options, "--out", out])
    assert NeuronSelection.from_json(out) == selection
    assert sum(selection.counts().values()) > 0
    if method.sizes_compare and name != "lape":
        assert max(selection.counts().values()) <= 10
    with pytest.raises(ValueError, match="changes nothing with"):
        select(run, name, **{(fields - set(method.options)).pop(): 1})
    if method.needs is not None:
        with pytest.raises(ValueError, match=f"{name} needs {method.needs}: give the run"):
            select(run.firing, name)


def test_choosing_both_ends_is_choosing_either_end(full: Path):
    run = Run.open(full / "full")
    precision = measure_precision(run.sentence_means)
    score = precision.average_precision[:, :, precision.units("pre")]
    both, top = select(run, "gate-precision-both-ends", n=20), select(run, "gate-precision", n=10)
    bottom = NeuronSelection(both.mask & ~top.mask, both.languages)
    assert by_score(top, score, 10)
    assert by_score(bottom, -score, 10)


def test_cumulative_mass_takes_the_fewest_neurons_that_fire_so_much(place: Path):
    found = find(place, "cumulative-mass", "--share", "0.5")
    fired = counts(place).fired.sum(0)
    mass = (fired * found.mask).sum(-1) / fired.sum(-1)
    least = (fired * found.mask).masked_fill(~found.mask, 1 << 40).amin(-1) / fired.sum(-1)
    assert (mass >= 0.5).all()
    assert (mass - least < 0.5).all()


def test_every_selection_says_how_it_was_made(place: Path):
    find(place, "random", "--n", "30", "--seed", "7")
    stored = json.loads((place / "run" / "neurons-random.json").read_text())["provenance"]
    told = stored["settings"]
    assert told["method"] == "random"
    assert (told["n"], told["seed"]) == (30, 7)
    assert "share" not in told
    assert told["run"]["wanted"]["sentence_means"] == ["pre", "mlp_out"]


@pytest.mark.slow
def test_what_a_method_needs_is_said_where_it_is_missing(place: Path, capsys):
    collect_into(place, "bare")
    run = str(place / "bare")
    for method, option in (("precision", "--sentences"), ("lave", "--moments")):
        assert option in refused(["find", run, "--method", method], capsys)
    for method, option, value in (("lap", "share", "0.5"), ("lape", "which", "top")):
        said = refused(["find", run, "--method", method, f"--{option}", value], capsys)
        assert f"--{option} changes nothing with --method {method}" in said
    said = refused(["find", str(place / "run"), "--method", "precision", "--n", "7"], capsys)
    assert "give an even number" in said


def test_another_model_in_the_place_of_the_old_one_is_refused(place: Path, capsys):
    old = place / "model"
    old.rename(place / "kept")
    try:
        tiny_models.build("qwen2", old, seed=1)
        said = refused(["find", str(place / "run"), "--method", "removal"], capsys)
        assert "was collected with: name that model with --model" in said
    finally:
        old.rename(place / "other")
        (place / "kept").rename(old)


# ---------------------------------------------------------------- compare


@pytest.fixture
def three(tmp_path: Path) -> list[NeuronSelection]:
    """Of two or three languages; the second has most of the first, the third is of two sites."""
    mask = torch.zeros(3, 2, 20, dtype=torch.bool)
    mask[0, 0, :4] = mask[1, 1, :6] = mask[2, 0, 7] = True
    changed = mask.clone()
    changed[0, 0, 3:5] = torch.tensor([False, True])
    wide = torch.cat([torch.ones(2, 2, 3, dtype=torch.bool), changed[:2]], dim=2)
    selections = [
        NeuronSelection(mask, ("en", "de", "fr")),
        NeuronSelection(changed[[1, 0]], ("de", "en")),
        NeuronSelection(wide, ("en", "de"), (("q", 3), ("pre", 20))),
    ]
    for number, each in enumerate(selections):
        each.to_json(tmp_path / f"{number}.json")
    return selections


def test_compared_are_the_languages_and_neurons_that_all_have(
    three: list[NeuronSelection], tmp_path: Path, capsys
):
    paths = [str(tmp_path / f"{number}.json") for number in range(3)]
    cli.main(["compare", *paths, "--out", str(tmp_path / "pairs.csv")])
    shown = capsys.readouterr().out
    assert "Not in all selections, and left out: fr" in shown
    assert "their MLP neurons alone are compared" in shown
    frame = pd.read_csv(tmp_path / "pairs.csv").set_index(["a", "b", "language"])
    assert len(frame) == 3 * 2
    first, second = (each.languages_only(("en", "de")) for each in three[:2])
    chance = chance_jaccard(first, second)
    for row, code in enumerate(("en", "de")):
        line = frame.loc[("A", "B", code)]
        assert line["jaccard"] == pytest.approx(jaccard_between(first, second)[row].item())
        assert line["chance"] == pytest.approx(chance.value[row].item())
    assert frame.loc[("A", "B", "en"), "both"] == 3
    assert frame.loc[("A", "B", "en"), "jaccard"] == pytest.approx(3 / 5)
    assert frame.loc[("B", "C", "de"), "jaccard"] == 1
    assert "0.600" in shown
    assert "de  A        0  6" in shown  # by layer


def test_selections_that_do_not_go_together_are_refused(
    three: list[NeuronSelection], tmp_path: Path, capsys
):
    first = str(tmp_path / "0.json")
    assert "One selection has nothing" in refused(["compare", first], capsys)
    three[0].languages_only(("fr",)).to_json(tmp_path / "french.json")
    french = [str(tmp_path / "french.json"), str(tmp_path / "1.json")]
    assert "no language in common: fr; de, en" in refused(["compare", *french], capsys)
    NeuronSelection(torch.zeros(1, 2, 9).bool(), ("en",)).to_json(tmp_path / "small.json")
    small = refused(["compare", first, str(tmp_path / "small.json")], capsys)
    assert "they must be of one model" in small
    missing = refused(["compare", first, str(tmp_path / "none.json")], capsys)
    assert missing.endswith("none.json does not exist. Check the name.")


# ---------------------------------------------------------------- what is printed


@pytest.mark.parametrize(("n_layers", "columns"), [(24, 24), (25, 4), (30, 4)])
def test_many_layers_are_printed_in_quarters(n_layers: int, columns: int):
    parts = parts_of_depth(n_layers)
    assert len(parts) == columns
    assert [layer for part in parts for layer in part] == list(range(n_layers))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_quarter_holds_the_neurons_of_its_layers():
    parts = parts_of_depth(30)
    assert headings(parts) == ["layers 0-6", "7-14", "15-21", "22-29"]
    assert by_part([1] * 7 + [10] * 8 + [0] * 14 + [2000], parts) == ["7", "80", "0", "2,000"]
    assert headings(parts_of_depth(3)) == ["layer 0", "1", "2"]


def test_a_table_of_quarters_says_so_and_the_rows_have_every_layer(capsys):
    mask = torch.zeros(1, 30, 5, dtype=torch.bool)
    mask[0, 8, :3] = True
    deep = NeuronSelection(mask, ("de",))
    show_selection(deep, None)
    said = capsys.readouterr().out
    assert "layers 0-6  7-14  15-21  22-29" in said
    assert said.split("German")[1].split()[:6] == ["3", "3", "0", "3", "0", "0"]
    assert "interp report draws every layer" in said
    assert len(summary(deep)["by_layer"][0]) == 30
    show_selection(NeuronSelection(mask[:, :24], ("de",)), None)
    assert "quarters" not in capsys.readouterr().out


@pytest.mark.parametrize(("agreement", "is_trial"), [(0.2, True), (0.9, False)])
def test_text_that_is_far_too_short_is_called_a_trial(agreement: float, is_trial: bool, capsys):
    fired = torch.zeros(4, 2, 1, 1, dtype=torch.int64)
    stats = FiringStats(fired, torch.full((4, 2), 640), ("de", "en"))
    Find(Path("run")).show_agreement(stats, agreement)
    said = capsys.readouterr().out
    assert "2,560 were read" in said
    assert said.endswith(": treat these as a trial.\n") is is_trial
