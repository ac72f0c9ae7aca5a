"""The commands about tasks: what they write, that they go on, and what they refuse."""

import itertools
import json
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch

from interp.commands.common import ModelChoice
from interp.commands.evaluate import Evaluate
from interp.commands.tasks import Attribute, Share
from interp.counting.signs import FiringSigns
from interp.evaluations import multiple_choice
from interp.evaluations.category_ablation import categories_at, end_of_prompt
from interp.evaluations.category_attribution import (
    CATEGORIES,
    CategorySums,
    Enrichment,
    attribute_categories,
    enrichment,
)
from interp.evaluations.category_scores import category_scores
from interp.evaluations.multiple_choice import choose, encode_items
from interp.evaluations.task_results import Choices, Written
from interp.interventions.edits import deactivate, intervene
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.prompts.attribution import integrated_gradients
from interp.prompts.contributions import contribution_score
from interp.prompts.ending import Ending
from interp.scores.sharing import Sharing
from interp.scores.sharing_profile import SharingProfile, sharing_profile
from interp.selections.neuron_selection import NeuronSelection
from interp.text.tasks import read_task
from tests import tiny_models
from tests.tiny_models import D_MLP, N_LAYERS

CODES = ("en", "de", "es")
TEXTS = {
    "en": ("the other day", "in the city", "never in the", "a quiet thing"),
    "de": ("der andere Tag", "in der Stadt", "nie in den", "ein leises Ding"),
    "es": ("el otro dia", "en la ciudad", "nunca en el", "una cosa"),
}


def write_tasks(folder: Path) -> Path:
    """A task to choose in, whose folder is returned, and beside it one to write in."""
    (folder / "made").mkdir()
    (folder / "written").mkdir()
    for code, texts in TEXTS.items():
        rows = [
            {"id": f"item-{n}", "text": text, "endings": ["day", "city", "on"], "answer": n % 3}
            for n, text in enumerate(texts)
        ]
        lines = [json.dumps(row | {"group": f"{n // 2}"}) for n, row in enumerate(rows)]
        (folder / "made" / f"{code}.jsonl").write_text("\n".join(lines))
        lines = [
            json.dumps({"id": str(n), "question": t, "answer": "4"}) for n, t in enumerate(texts)
        ]
        (folder / "written" / f"{code}.jsonl").write_text("\n".join(lines))
    return folder / "made"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    tiny_models.build("llama", folder / "model")
    write_tasks(folder)
    mask = torch.zeros(2, N_LAYERS, D_MLP, dtype=torch.bool)
    mask[0, :, :20] = True
    mask[1, 1, 20:50] = True
    NeuronSelection(mask, ("en", "de")).to_json(folder / "neurons.json")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> NeuronModel:
    return load(place / "model")


def choice(place: Path) -> ModelChoice:
    return ModelChoice(str(place / "model"))


# ---------------------------------------------------------------- share


@pytest.mark.slow
def test_share_writes_signs_and_profile_and_goes_on(place, model, tmp_path, capsys):
    command = Share(str(place / "made"), choice(place), CODES, n_shards=2, n_draws=3, out=tmp_path)
    command.run()
    shown = capsys.readouterr().out
    assert "all shared" in shown
    assert "4 prompts" in shown
    profile = SharingProfile.load(tmp_path / "profile.safetensors")
    assert profile.languages == CODES
    assert profile.prompts == tuple(f"item-{n}" for n in range(4))
    assert profile.clusters.tolist() == [0, 0, 1, 1]
    assert (profile.count.sum(dim=-1) == D_MLP).all()
    # The same neurons as at the ends of prompts that ablate_categories and attribution ask about.
    signs = FiringSigns.load(tmp_path / "signs.safetensors")
    tasks = [read_task(place / "made", code) for code in CODES]
    encoded = [encode_items(model, task) for task in tasks]
    for prompt in range(4):
        category = categories_at([end_of_prompt(model, items[prompt]) for items in encoded])
        counts = [(category == each).sum(dim=1) for each in range(4)]
        assert torch.equal(torch.stack(counts, dim=1), profile.count[prompt])
    again = sharing_profile(signs, torch.Generator().manual_seed(0), n_draws=3)
    assert torch.equal(again.shuffled, profile.shuffled)
    frame = pd.read_csv(tmp_path / "profile.csv")
    assert {"independent", "interchangeable", "low", "high"} <= set(frame.columns)
    command.run()  # nothing is read again; the same files
    assert torch.equal(SharingProfile.load(tmp_path / "profile.safetensors").count, profile.count)


def test_share_needs_languages_and_the_same_items(place, tmp_path):
    with pytest.raises(ValueError, match="name two or more"):
        Share(str(place / "made"), choice(place), ("en",), out=tmp_path).run()
    folder = tmp_path / "short"
    folder.mkdir()
    for code in ("en", "de"):
        lines = (place / "made" / f"{code}.jsonl").read_text().splitlines()
        (folder / f"{code}.jsonl").write_text("\n".join(lines[: 4 if code == "en" else 3]))
    with pytest.raises(ValueError, match=r"short in de lacks 1 items .* 'item-3'"):
        Share(str(folder), choice(place), ("en", "de"), out=tmp_path).run()


@pytest.mark.slow
def test_share_reads_by_output_and_at_several_thresholds(place, tmp_path, capsys):
    made, opened = str(place / "made"), choice(place)
    settings = {"n_shards": 1, "n_draws": 0, "out": tmp_path / "output"}
    Share(made, opened, CODES, fires_by="output", thresholds=(0.0, 0.02), **settings).run()
    shown = capsys.readouterr().out
    assert "by output above 0 (" in shown
    assert "by output above 0.02 (" in shown
    found = [
        SharingProfile.load(tmp_path / "output" / folder / "profile.safetensors")
        for folder in (".", "above-0.02")
    ]
    assert [each.threshold for each in found] == [0.0, 0.02]
    assert {each.fires_by for each in found} == {"output"}
    shared = [each.count[..., Sharing.ALL_SHARED].sum() for each in found]
    assert shared[0] > shared[1]
    with pytest.raises(ValueError, match="was started with another wanted"):
        Share(made, opened, CODES, **settings).run()
    for wrong, said in (((), "no number"), ((0.1, 0.1), r"0\.1 0\.1"), ((float("nan"),), "nan")):
        with pytest.raises(ValueError, match=f"--thresholds is {said}: give numbers"):
            Share(made, opened, CODES, thresholds=wrong, out=tmp_path / "wrong").run()
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_sixteen_bits_are_said_to_round_signs_and_gradients(place, tmp_path, capsys):
    opened = ModelChoice(str(place / "model"), dtype="bfloat16")
    made, signs = str(place / "made"), "is in torch.bfloat16: rounding decides"
    with pytest.warns(UserWarning, match=signs):
        Share(made, opened, CODES, n_shards=1, n_draws=0, out=tmp_path / "share").run()
    assert (tmp_path / "share" / "profile.csv").exists()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Attribute(made, opened, CODES, items=3, steps=4, out=tmp_path / "attribute").run()
    said = " ".join(str(each.message) for each in caught)
    assert signs in said
    assert "gradients keep two or three digits" in said
    assert (tmp_path / "attribute" / "sums.csv").exists()


# ---------------------------------------------------------------- attribute


@pytest.mark.slow
def test_sums_by_category_are_those_of_single_attributions(place, model):
    tasks = [read_task(place / "made", code) for code in CODES]
    found = attribute_categories(model, tasks, steps=20, progress=False)
    for prompt in range(4):
        rows = [encode_items(model, task)[prompt] for task in tasks]
        category = categories_at([end_of_prompt(model, row) for row in rows])
        for column, row in enumerate(rows):
            ids = row.rows[prompt % 3]
            single = integrated_gradients(model, ids[: row.begin], ids[row.begin], steps=20)
            assert found.score[prompt, column].item() == pytest.approx(single.score)
            for layer in range(N_LAYERS):
                for each in range(4):
                    mine = [
                        value
                        for value, of in zip(
                            single.values[layer].tolist(), category[layer].tolist(), strict=True
                        )
                        if of == each
                    ]
                    assert found.neurons[prompt, each, layer] == len(mine)
                    value = found.sums[prompt, column, each, layer].item()
                    assert value == pytest.approx(sum(mine), abs=1e-6)
    # What the categories do adds up to what the layer does.
    total, change = found.sums.sum(dim=2), found.change
    assert (total - change).abs().max() < 0.02 * change.abs().max()
    frame = found.to_frame()
    assert len(frame) == 3 * N_LAYERS * 4
    row = frame.iloc[5]  # the second layer, specific neurons, English
    assert (row["layer"], row["category"], row["language"]) == (1, "specific", "en")
    assert row["value"] == pytest.approx(found.sums[:, 0, 1, 1].mean().item())
    assert row["share"] == pytest.approx(row["value"] / found.change[:, 0, 1].mean().item())


@pytest.mark.slow
def test_attribute_keeps_every_item_and_goes_on(place, tmp_path, capsys, monkeypatch):
    command = Attribute(str(place / "made"), choice(place), CODES, items=3, steps=15, out=tmp_path)
    command.run()
    assert "layer off" in capsys.readouterr().out
    first = CategorySums.load(tmp_path / "sums.safetensors")
    assert first.prompts == ("item-0", "item-1", "item-2")
    assert set(pd.read_csv(tmp_path / "sums.csv")["category"]) == set(CATEGORIES)
    done = sorted((tmp_path / "pieces").iterdir())
    assert len(done) == 3
    done[1].unlink()
    calls: list[int] = []

    def counted(*given, **settings):
        calls.append(1)
        return integrated_gradients(*given, **settings)

    monkeypatch.setattr("interp.evaluations.category_attribution.integrated_gradients", counted)
    monkeypatch.setattr("interp.commands.common.OnRay.goes_ahead", lambda *_: True)  # no trial
    command.run()
    assert len(calls) == len(CODES)  # one item in every language
    again = CategorySums.load(tmp_path / "sums.safetensors")
    assert torch.equal(again.sums, first.sums)
    with pytest.raises(ValueError, match="was started with another steps"):
        Attribute(str(place / "made"), choice(place), CODES, items=3, steps=16, out=tmp_path).run()
    done[0].unlink()
    done[1].rename(done[0])
    with pytest.raises(ValueError, match="holds item 'item-1', not 'item-0'"):
        command.run()


@pytest.mark.slow
def test_attribute_sorts_by_the_source_it_is_told(place, model, tmp_path, capsys):
    settings = {"items": 3, "steps": 15}
    made, opened = str(place / "made"), choice(place)
    for source in ("gate", "output"):
        out = tmp_path / source
        Attribute(made, opened, CODES, fires_by=source, out=out, **settings).run()
    gate, output = (CategorySums.load(tmp_path / each / "sums.safetensors") for each in SOURCES)
    assert (gate.fires_by, output.fires_by) == SOURCES
    assert not torch.equal(gate.neurons, output.neurons)
    assert torch.equal(gate.change, output.change)  # what a layer does knows no categories
    tasks = [read_task(place / "made", code) for code in CODES]
    rows = [encode_items(model, task)[1] for task in tasks]
    category = categories_at([end_of_prompt(model, row) for row in rows], "output")
    counts = torch.stack([(category == each).sum(dim=1) for each in Sharing])
    assert torch.equal(output.neurons[1], counts)
    with pytest.raises(ValueError, match="was started with another fires_by"):
        Attribute(made, opened, CODES, out=tmp_path / "output", **settings).run()


SOURCES = ("gate", "output")


@pytest.mark.slow
def test_a_full_memory_leaves_what_was_done_and_is_gone_on_from(
    place, tmp_path, capsys, monkeypatch
):
    command = Attribute(str(place / "made"), choice(place), CODES, items=3, steps=15, out=tmp_path)
    asked, calls = Ending.run, [0]

    def full(self, n_variants, edits, max_positions=96):
        calls[0] += 1
        if calls[0] > len(CODES):  # the first item, in every language
            raise torch.OutOfMemoryError("out of memory")
        yield from asked(self, n_variants, edits, max_positions)

    with monkeypatch.context() as patched:
        patched.setattr(Ending, "run", full)
        patched.setattr("interp.commands.common.OnRay.goes_ahead", lambda *_: True)  # no trial
        with pytest.raises(ValueError, match=r"too small for one variant .* are kept"):
            command.run()
    first = tmp_path / "pieces" / "00000.safetensors"
    before = first.read_bytes()
    assert len(list((tmp_path / "pieces").iterdir())) == 1
    command.run()
    assert first.read_bytes() == before
    assert len(CategorySums.load(tmp_path / "sums.safetensors").prompts) == 3


def test_answers_that_are_no_tokens_and_items_that_are_missing_are_named(place, tmp_path):
    for name in ("empty", "short"):
        (tmp_path / name).mkdir()
    for code in CODES:
        lines = (place / "made" / f"{code}.jsonl").read_text().splitlines()
        row = json.loads(lines[2])
        row["endings"][1] = ""
        emptied = [*lines[:2], json.dumps(row), lines[3]] if code == "de" else lines
        (tmp_path / "empty" / f"{code}.jsonl").write_text("\n".join(emptied))
        short = lines[:1] if code == "es" else lines
        (tmp_path / "short" / f"{code}.jsonl").write_text("\n".join(short))
    said = "The option '' of 'item-2' of empty in de has no tokens"
    empty = str(tmp_path / "empty")
    with pytest.raises(ValueError, match=said):
        Attribute(empty, choice(place), CODES, out=tmp_path / "a").run()
    with pytest.raises(ValueError, match=said):
        Evaluate(place / "neurons.json", choice(place), (empty,), ("de",), out=tmp_path / "b").run()
    said = r"short in es lacks 3 items that other languages have, such as 'item-1', 'item-2', 'item"
    for command in (Share, Attribute):
        with pytest.raises(ValueError, match=said):
            command(str(tmp_path / "short"), choice(place), CODES, out=tmp_path / "c").run()
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="form a single group"):
        Attribute(str(place / "made"), choice(place), CODES, items=2, out=tmp_path / "d").run()
    for command in (
        Attribute(empty, choice(place), CODES, items=0, out=tmp_path / "d"),
        Evaluate(place / "neurons.json", choice(place), (empty,), items=-1, out=tmp_path / "d"),
    ):
        with pytest.raises(ValueError, match=r"--items is (0|-1): take 1 or more"):
            command.run()


# ---------------------------------------------------------------- among the largest contributions


@pytest.mark.slow
def test_enrichment_equals_its_definition_with_sets(place, model):
    tasks = [read_task(place / "made", code) for code in CODES]
    found = enrichment(model, tasks, top_share=0.1, progress=False)
    assert found.groups == ("0", "0", "1", "1")
    n_top = round(0.1 * D_MLP)
    encoded = [encode_items(model, task) for task in tasks]
    for prompt, layer in itertools.product(range(4), range(N_LAYERS)):
        endings = [end_of_prompt(model, items[prompt]) for items in encoded]
        category = categories_at(endings)[layer]
        scores = [contribution_score(model, each.values["post"][:, 0])[layer] for each in endings]
        for each in Sharing:
            inside = set((category == each).nonzero().flatten().tolist())
            units, firing = [], []
            for score in scores:
                gives = set((score > 0).nonzero().flatten().tolist())
                top = gives & set(score.argsort(descending=True)[:n_top].tolist())
                share = len(inside & top) / len(top)
                if inside:
                    units.append(share / (len(inside) / D_MLP))
                    firing.append(share / (len(inside & gives) / len(gives)))
            for ratios, values in ((found.units, units), (found.firing, firing)):
                mean = sum(values) / len(values) if values else torch.nan
                expected = pytest.approx(mean, nan_ok=True, rel=1e-6)
                assert ratios[prompt, layer, each].item() == expected
    frame = found.to_frame()
    assert len(frame) == N_LAYERS * 4
    assert (frame["units_low"] <= frame["units"]).all()
    with pytest.raises(ValueError, match="top_share is 0"):
        enrichment(model, tasks, top_share=0.0)


@pytest.mark.slow
def test_scores_by_category_equal_their_definition_neuron_by_neuron(place, model):
    tasks = [read_task(place / "made", code) for code in CODES]
    found = category_scores(model, tasks, progress=False)
    encoded = [encode_items(model, task) for task in tasks]
    for prompt, code, layer in itertools.product(range(4), range(3), range(N_LAYERS)):
        endings = [end_of_prompt(model, items[prompt]) for items in encoded]
        category = categories_at(endings)[layer].tolist()
        values = endings[code].values["post"][layer, 0].tolist()
        item = encoded[code][prompt]
        row = model.bridge.W_E[item.first_tokens[tasks[code].items[prompt].answer]]
        writes = model.w_out(layer)
        moved = [abs(m) * writes[j].norm().item() for j, m in enumerate(values)]
        effect = [m * (writes[j] @ row).item() for j, m in enumerate(values)]
        for each in Sharing:
            chosen = [j for j in range(D_MLP) if category[j] == each]
            assert found.neurons[prompt, each, layer] == len(chosen)
            index = (prompt, code, each, layer)
            slow = {"contribution_sum": sum(moved[j] for j in chosen)}
            effects = [effect[j] for j in chosen]
            slow["contribution_mean"] = slow["contribution_sum"] / len(chosen)
            slow |= {"effective_max": max(effects), "effective_min": min(effects)}
            slow["effective_mean"] = sum(effects) / len(effects)
            for name, value in slow.items():
                assert getattr(found, name)[index].item() == pytest.approx(value, abs=1e-6)
            part = [
                found.contribution_sum[prompt, other, each, layer].item()
                / found.contribution_sum[prompt, other, :, layer].sum().item()
                for other in range(3)
            ]
            assert found.shares()[prompt, each, layer].item() == pytest.approx(sum(part) / 3)
    empty = category_scores(model, tasks[:2], progress=False)  # of two, none is partly shared
    for name in ("contribution_mean", "effective_max", "effective_mean", "effective_min"):
        values = getattr(empty, name)
        assert values[:, :, Sharing.PARTLY_SHARED].isnan().all()
        assert not values[:, :, Sharing.ALL_SHARED].isnan().any()
    assert (empty.contribution_sum[:, :, Sharing.PARTLY_SHARED] == 0).all()
    table = found.to_frame().set_index(["language", "layer", "category"])
    assert len(table) == 3 * N_LAYERS * 4
    cell = table.loc[("de", 1, "all shared")]
    at = (slice(None), 1, Sharing.ALL_SHARED, 1)
    assert cell["effective_min"] == pytest.approx(found.effective_min[at].nanmean().item())
    assert cell["contribution_mean"] == pytest.approx(found.contribution_mean[at].nanmean().item())
    assert found.contribution_share().value.sum(dim=0).tolist() == pytest.approx([1.0] * N_LAYERS)


def test_a_category_that_fills_the_top_is_enriched_and_an_empty_one_is_unknown():
    ratio = torch.tensor([[[torch.nan, 1.0, 2.0, 0.5]], [[torch.nan, 3.0, torch.nan, 0.5]]])
    found = Enrichment(units=ratio.double(), firing=ratio.double(), groups=("a", "b"))
    means = [found.mean(0, each, "units") for each in Sharing]
    assert torch.stack([each.value for each in means]).isnan().tolist() == [
        True,
        False,
        True,
        False,
    ]
    assert means[1].value == 2.0
    assert means[3].low == means[3].high == 0.5
    alike = Enrichment(units=ratio.double(), firing=ratio.double(), groups=("a", "a"))
    assert alike.mean(0, Sharing.SPECIFIC, "firing").value.isnan()


# ---------------------------------------------------------------- evaluate


@pytest.mark.slow
def test_evaluate_compares_with_untouched_and_random(place, model, tmp_path, capsys):
    command = Evaluate(
        place / "neurons.json", choice(place), (str(place / "made"),), n_draws=2, out=tmp_path
    )
    command.run()
    shown = capsys.readouterr().out
    assert "a random\ncontrol of the same size per layer" in shown
    frame = pd.read_csv(tmp_path / "evaluate.csv")
    assert list(frame["off"]) == ["nothing", "en", "de"] * 2
    assert list(frame["language"]) == ["en"] * 3 + ["de"] * 3
    selection = NeuronSelection.from_json(place / "neurons.json")
    task = read_task(place / "made", "de")
    (untouched,) = choose(model, [task], progress=False)
    with intervene(model, selection["en"], deactivate):
        (off,) = choose(model, [task], progress=False)
    row = frame[(frame["language"] == "de") & (frame["off"] == "en")].iloc[0]
    assert row["accuracy"] == off.accuracy().value.item()
    lost = untouched.accuracy().value.item() - off.accuracy().value.item()
    assert row["drop"] == pytest.approx(lost)
    assert row["neurons"] == 60
    stored_at = tmp_path / "choices" / "answers" / "01-made-de-en.safetensors"
    stored = Choices.load(stored_at)
    torch.testing.assert_close(stored.log_likelihood, off.log_likelihood)
    random = [
        Choices.load(stored_at.with_name(f"01-made-de-en%20random%20{n}.safetensors"))
        for n in range(2)
    ]
    mean = sum(each.accuracy().value.item() for each in random) / 2
    assert row["random"] == pytest.approx(mean)
    assert row["excess"] == pytest.approx(mean - row["accuracy"])
    assert not torch.equal(random[0].log_likelihood, random[1].log_likelihood)


def test_evaluate_takes_units_of_several_sites(place, model, tmp_path):
    sites = (("pre", model.d_mlp), ("mlp_out", model.d_model))
    mask = torch.zeros(1, model.n_layers, model.d_mlp + model.d_model, dtype=torch.bool)
    mask[:, 1, ::9] = True
    selection = NeuronSelection(mask, ("de",), sites)
    selection.to_json(tmp_path / "units.json")
    Evaluate(
        tmp_path / "units.json", choice(place), (str(place / "made"),), n_draws=1, out=tmp_path
    ).run()
    (task,) = [read_task(place / "made", "de")]
    with intervene(model, selection.units("de"), deactivate):
        (off,) = choose(model, [task], progress=False)
    (stored,) = (tmp_path / "choices" / "answers").glob("*-de-de.safetensors")
    found = Choices.load(stored)
    torch.testing.assert_close(found.log_likelihood, off.log_likelihood)
    assert not torch.equal(
        found.log_likelihood, choose(model, [task], progress=False)[0].log_likelihood
    )


@pytest.mark.slow
def test_evaluate_goes_on_and_refuses_other_settings(place, tmp_path, monkeypatch, capsys):
    settings = {"tasks": (str(place / "written"),), "n_draws": 1, "max_new_tokens": 3}
    command = Evaluate(place / "neurons.json", choice(place), **settings, out=tmp_path)
    command.run()
    texts = Written.load(tmp_path / "written" / "answers" / "00-written-en-nothing.safetensors")
    assert len(texts.texts) == 4
    before = (tmp_path / "evaluate.csv").read_text()
    monkeypatch.setattr(multiple_choice, "generate_texts", None)  # it is not needed again
    command.run()
    assert (tmp_path / "evaluate.csv").read_text() == before
    settings["max_new_tokens"] = 4
    with pytest.raises(ValueError, match="was started with another max_new_tokens"):
        Evaluate(place / "neurons.json", choice(place), **settings, out=tmp_path).run()
    with pytest.raises(ValueError, match="--n-draws is 0"):
        Evaluate(place / "neurons.json", choice(place), n_draws=0, out=tmp_path).run()


def test_held_out_facts_are_only_asked_when_wanted(place):
    task = read_task("babel/fact_completion", "en")
    held = sum(item.held_out for item in task.items)
    assert held > 0
    trained = Evaluate(place / "neurons.json", choice(place)).choose_items(task)
    every = Evaluate(place / "neurons.json", choice(place), held_out=True).choose_items(task)
    assert len(trained.items) == len(task.items) - held
    assert every.items == task.items
    assert (
        len(Evaluate(place / "neurons.json", choice(place), items=5).choose_items(task).items) == 5
    )
