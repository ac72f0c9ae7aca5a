"""The commands about tasks: what they write, that they go on, and what they refuse."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from interp.commands import tasks as module
from interp.commands.common import ModelChoice
from interp.commands.tasks import Attribute, Evaluate, Share
from interp.evaluations.category_sums import CATEGORIES, CategorySums, attribute_categories
from interp.evaluations.switch_off import categories_at, end_of_prompt
from interp.evaluations.task_files import read_task
from interp.evaluations.task_results import Choices, Written
from interp.evaluations.tasks import choose, encode_items
from interp.interventions import deactivate, intervene
from interp.model import NeuronModel, load
from interp.scores.attribution import integrated_gradients
from interp.scores.sharing import SharingProfile, sharing_profile
from interp.selection import NeuronSelection
from interp.stats import FiringSigns
from tests import tiny_models
from tests.tiny_models import D_MLP, N_LAYERS

CODES = ("en", "de", "es")
TEXTS = {
    "en": ("the other day", "in the city", "never in the", "a quiet thing"),
    "de": ("der andere Tag", "in der Stadt", "nie in den", "ein leises Ding"),
    "es": ("el otro dia", "en la ciudad", "nunca en el", "una cosa"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    tiny_models.build("llama", folder / "model")
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
    # The same neurons as at the ends of prompts that switch_off and attribution ask about.
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


# ---------------------------------------------------------------- attribute


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

    monkeypatch.setattr("interp.evaluations.category_sums.integrated_gradients", counted)
    command.run()
    assert len(calls) == len(CODES)  # one item in every language
    again = CategorySums.load(tmp_path / "sums.safetensors")
    assert torch.equal(again.sums, first.sums)
    with pytest.raises(ValueError, match="was started with another steps"):
        Attribute(str(place / "made"), choice(place), CODES, items=3, steps=16, out=tmp_path).run()
    done[0].unlink()
    done[1].rename(done[0])
    with pytest.raises(ValueError, match="is of the item 'item-1', not 'item-0'"):
        command.run()


# ---------------------------------------------------------------- evaluate


def test_evaluate_compares_with_untouched_and_random(place, model, tmp_path, capsys):
    command = Evaluate(
        place / "neurons.json", choice(place), (str(place / "made"),), n_draws=2, out=tmp_path
    )
    command.run()
    shown = capsys.readouterr().out
    assert "random neurons in every layer" in shown
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
    stored = Choices.load(tmp_path / "results" / "made-de-en.safetensors")
    torch.testing.assert_close(stored.log_likelihood, off.log_likelihood)
    random = [
        Choices.load(tmp_path / "results" / f"made-de-en-random-{n}.safetensors") for n in range(2)
    ]
    mean = sum(each.accuracy().value.item() for each in random) / 2
    assert row["random"] == pytest.approx(mean)
    assert row["excess"] == pytest.approx(mean - row["accuracy"])
    assert not torch.equal(random[0].log_likelihood, random[1].log_likelihood)


def test_evaluate_goes_on_and_refuses_other_settings(place, tmp_path, monkeypatch, capsys):
    settings = {"tasks": (str(place / "written"),), "n_draws": 1, "max_new_tokens": 3}
    command = Evaluate(place / "neurons.json", choice(place), **settings, out=tmp_path)
    command.run()
    texts = Written.load(tmp_path / "results" / "written-en-nothing.safetensors")
    assert len(texts.texts) == 4
    before = (tmp_path / "evaluate.csv").read_text()
    monkeypatch.setattr(module, "exact_match", None)  # it is not needed again
    command.run()
    assert (tmp_path / "evaluate.csv").read_text() == before
    settings["max_new_tokens"] = 4
    with pytest.raises(ValueError, match="was started with another max_new_tokens"):
        Evaluate(place / "neurons.json", choice(place), **settings, out=tmp_path).run()
    with pytest.raises(ValueError, match="--n-draws is 0"):
        Evaluate(place / "neurons.json", choice(place), n_draws=0, out=tmp_path).run()


def test_what_was_never_told_is_only_asked_when_wanted(place):
    task = read_task("babel/fact_completion", "en")
    held = sum(item.held_out for item in task.items)
    assert held > 0
    told = Evaluate(place / "neurons.json", choice(place)).taken(task)
    every = Evaluate(place / "neurons.json", choice(place), held_out=True).taken(task)
    assert len(told.items) == len(task.items) - held
    assert every.items == task.items
    assert len(Evaluate(place / "neurons.json", choice(place), items=5).taken(task).items) == 5
