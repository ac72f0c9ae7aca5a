"""The commands that look between languages, and the two studies that are made of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import tyro

import interp
from experiments import lens_by_language, patch_across_languages
from experiments.patch_across_languages import (
    CELLS,
    Crossing,
    averages,
    first_tokens,
    relation,
    rows_of,
    subject,
    verdict,
)
from experiments.study import Study
from interp.alignment import Source
from interp.commands.crossing import Lens, Patch
from interp.evaluations.task_files import read_task
from interp.lens import Lens as LensResult
from interp.model import NeuronModel
from interp.patching import PatchingResult, patch
from tests.test_patching import planted

SOURCE, TARGET = "Der Tag nach Montag ist", "The day after Thursday is"
ANSWERS = (" Friday", " Tuesday", " Dienstag")


def run(command: Any, *arguments: str) -> None:
    tyro.cli(command, args=list(arguments)).run()


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of Babel's facts, those about days and numbers, in two languages."""
    folder = tmp_path_factory.mktemp("facts")
    for code in ("de", "en"):
        rows = [
            {
                "id": item.id,
                "text": item.prompt,
                "endings": item.options,
                "answer": item.answer,
                "held_out": item.held_out,
            }
            for item in read_task("babel", code).items
            if relation(item).endswith(("day_after", "next_number"))
        ]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows[:24])
        (folder / f"{code}.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


# ---------------------------------------------------------------- commands


def test_the_patch_command_prints_and_saves_what_patch_gives(tmp_path, capsys):
    out = tmp_path / "patching.safetensors"
    precise = ("--dtype", "float32")  # in 16 bits passes of other sizes differ by a hundredth
    run(Patch, SOURCE, TARGET, *precise, "--answers", *ANSWERS, "--noise", "--out", str(out))
    found = PatchingResult.load(out)
    model = interp.load("babel", dtype=torch.float32)
    first = [model.bos_id, *model.encode(SOURCE)]
    second = [model.bos_id, *model.encode(TARGET)]
    answers = {text: model.encode(text)[0] for text in ANSWERS}
    expected = patch(model, first, second, answers)
    assert found.log_probability[0].allclose(expected.log_probability[0], atol=1e-4)
    assert found.sources == ("source", "noise")
    shown = capsys.readouterr().out
    assert "target as it is" in shown
    assert "source: resid_post, layer 0, 0 'last'" in shown
    assert shown.count("noise: resid_post") == model.n_layers
    assert f"{found.probability[0, 0, 3, 0, 1]:.4f}" in shown
    assert len(pd.read_csv(tmp_path / "patching.csv")) == 2 * model.n_layers * 3


def test_the_patch_command_takes_texts_and_neurons(tmp_path, capsys):
    run(
        Patch, SOURCE, TARGET, "--answers", *ANSWERS,
        "--layers", "from", "--texts", "Montag", "Thursday",
    )  # fmt: skip
    assert "layer 2 and on, 0 'Thursday'" in capsys.readouterr().out
    model = interp.load("babel")
    mask = torch.zeros(1, model.n_layers, model.d_mlp, dtype=torch.bool)
    mask[:, :, :20] = True
    interp.NeuronSelection(mask, ("de",)).to_json(tmp_path / "neurons.json")
    chosen = ("--part", "neurons", "--neurons", str(tmp_path), "--language", "de")
    run(Patch, SOURCE, TARGET, "--answers", *ANSWERS, *chosen, "--layers", "all")
    shown = capsys.readouterr().out
    assert "source: neurons of de, all layers" in shown
    assert "source: random neurons of de, all layers" in shown
    with pytest.raises(ValueError, match="needs --neurons and --language"):
        run(Patch, SOURCE, TARGET, "--answers", *ANSWERS, "--part", "neurons")
    with pytest.raises(ValueError, match='attention="hooked"'):
        run(Patch, SOURCE, TARGET, "--answers", *ANSWERS, "--part", "heads")
    with pytest.raises(ValueError, match="give one of the two"):
        run(
            Patch, SOURCE, TARGET, "--answers", *ANSWERS, "--control", "a",
            "--texts", "Montag", "Thursday",
        )  # fmt: skip


def test_the_lens_command_prints_and_saves_every_layer(tmp_path, facts, capsys):
    out = tmp_path / "lens.safetensors"
    run(Lens, "--prompts", str(facts), "--languages", "de", "en", "--out", str(out))
    found, shown = LensResult.load(out), capsys.readouterr().out
    assert found.languages == ("de", "en")
    assert f"over {len(found.kept)} prompts" in shown
    assert f"{len(found.alike)} whose answers begin alike" in shown
    mean = found.probability.mean(dim=0)
    assert all(f"{value:.3f}" in shown for value in mean[-1].tolist())
    assert len(pd.read_csv(tmp_path / "lens.csv")) == 2 * mean.shape[0]


# ---------------------------------------------------------------- the study of patches


def test_the_subject_is_where_two_prompts_of_a_relation_differ():
    assert subject(SOURCE, "Der Tag nach Freitag ist") == "Montag"
    assert subject("四的下一个数是", "十四的下一个数是") == ""
    assert subject("星期四的后一天是", "星期一的后一天是") == "四"
    assert subject("Sieben minus eins ist", "Neun minus zwei ist") == "Sieben minus eins"
    assert subject("a b a", "c b a") == ""  # its last place is another


def test_words_begin_with_and_without_their_space():
    model = interp.load("babel")
    found = first_tokens(model, " Dienstag.")
    assert {model.decode([id]) for id in found} == {
        model.decode(model.encode(text)[:1]) for text in ("Dienstag.", " Dienstag.")
    }


def crossings(model: NeuronModel) -> list[Crossing]:
    """All that can be asked of a planted model: token 2l + c is about c in l."""
    found = []
    for token in range(4):
        (s, a), (t, b) = divmod(token, 2), divmod(3 - token, 2)
        cells = [(s, a), (s, b), (t, a), (t, b)]
        answers = {
            cell: [4 + 2 * language + concept]
            for cell, (language, concept) in zip(CELLS, cells, strict=True)
        }
        source, target = Source([8, token]), Source([8, 8, 3 - token])
        found.append(Crossing(source, target, answers, {}, ("s", "t"), token, False))
    return found


@pytest.mark.parametrize(
    ("apart", "expected"), [(True, "the language moves further"), (False, "they move together")]
)
def test_the_verdict_tells_whether_language_and_concept_are_apart(tmp_path, apart, expected):
    model = planted(tmp_path, apart)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, : 2 if apart else 4] = True  # what fires for one language alone
    rows = []
    for each in crossings(model):
        found = patch(
            model, each.source, each.target.prompt, each.answers, {"language neurons": mask}, "all"
        )
        rows += rows_of(each, found)
    table = averages(pd.DataFrame(rows), ["part", "at", "source", "layer"])
    assert table["verdict"].tolist() == [expected]
    line = table.iloc[0]
    assert line["language moved"] > 0.9
    assert (line["concept moved"] < 0.1) == apart
    assert line["prompts"] == 4


def test_verdicts_follow_the_intervals():
    def of(*ends: tuple[float, float]) -> str:
        low, high = zip(*ends, strict=True)
        return verdict(torch.tensor(low).double(), torch.tensor(high).double())

    assert of((-0.1, 0.1), (-0.1, 0.2), (-0.1, 0.1)) == "neither moves"
    assert of((-0.1, 0.1), (0.5, 0.9), (0.4, 0.9)) == "the language moves further"
    assert of((0.5, 0.9), (-0.1, 0.1), (-0.9, -0.4)) == "the concept moves further"
    assert of((0.5, 0.9), (0.5, 0.9), (-0.2, 0.2)) == "they move together"
    assert of((-0.1, 0.9), (0.1, 0.9), (-0.2, 0.5)) == "not told apart"


def small(preset: Any, facts: Path, out: Path) -> Any:
    study = Study(languages=("de", "en"), tokens=2000, n_shards=2, block_length=64, out=out)
    return replace(preset["tiny"][1], study=study, facts=str(facts), out=out)


def test_patching_is_studied_whole(facts, tmp_path, capsys):
    config = replace(small(patch_across_languages.PRESETS, facts, tmp_path), n_pairs=3)
    patch_across_languages.main(config)
    prompts, table = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("prompts", "table"))
    assert set(prompts["at"]) == {"last", "subject"}
    assert set(prompts["source"]) == {"source", "A in t", "another concept in s", "noise"}
    assert {"language neurons", "random language neurons", "all neurons"} <= set(prompts["part"])
    assert prompts.loc[:, list(CELLS)].to_numpy().sum(axis=1) == pytest.approx(1.0)
    # At the last token, the last layer is the source's own answer, in its own language.
    last = table.query("part == 'resid_post' and at == 'last' and source == 'source'")
    deepest = last[last["facts"] == "all"].iloc[-1]
    assert deepest["language moved"] > 0.9
    assert "verdict" in capsys.readouterr().out


def test_the_lens_is_studied_whole(facts, tmp_path, capsys):
    config = replace(small(lens_by_language.PRESETS, facts, tmp_path), fraction=0.02)
    lens_by_language.main(config)
    names = ("lens", "top", "promoted")
    lens, top, promoted = (pd.read_csv(tmp_path / f"{name}.csv") for name in names)
    assert set(lens["language"]) == {"de", "en"}
    sums = [each["share"].sum() for _, each in top.groupby(["asked_in", "layer"])]
    assert sums == pytest.approx([1.0] * len(sums))
    assert set(promoted["neurons"]) == {"language neurons", "random neurons 0"}
    assert "by layer" in capsys.readouterr().out
