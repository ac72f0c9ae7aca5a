"""The commands that look between languages, and the two studies that are made of them."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interp
from experiments import lens_by_language, patch_across_languages
from experiments.crossing_claims import Questions, in_the_stream, measures
from experiments.crossings import (
    CELLS,
    Answered,
    Crossing,
    answer,
    crossing,
    first_tokens,
    relation,
    right,
    subject,
)
from experiments.crossings import crossings as crossings_of
from experiments.patch_across_languages import averages, neuron_sets, patched, rows_of, verdict
from experiments.runner import Experiment, stated
from experiments.study import Study
from interp.commands.crossing import Lens, Patch
from interp.commands.options import Parser
from interp.inference.intervals import mean_over_examples
from interp.inference.statements import judged
from interp.prompts.alignment import PatchSource
from interp.prompts.lens import Lens as LensResult
from interp.prompts.patching import patch
from interp.prompts.patching_result import PatchingResult
from interp.text.tasks import Item, Task, align_tasks, read_task
from tests.test_patching import planted

SOURCE, TARGET = "Der Tag nach Montag ist", "The day after Thursday is"
ANSWERS = (" Friday", " Tuesday", " Dienstag")


def run(command: Any, *arguments: str) -> None:
    Parser(command.__name__.lower(), command).read(arguments).run()


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of Babel's facts, those about numbers and opposites, in two languages."""
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
            for item in read_task("babel/fact_completion", code).items
            if relation(item).endswith(("next_number", "plus", "opposite"))
        ]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows[:12])
        (folder / f"{code}.jsonl").write_text(text + "\n", encoding="utf-8")
    return folder


# ---------------------------------------------------------------- commands


@pytest.mark.slow
def test_the_patch_command_prints_and_saves_what_patch_gives(tmp_path, capsys):
    out = tmp_path / "patching.safetensors"
    precise = ("--dtype", "float32")  # in 16 bits passes of other sizes differ by a hundredth
    run(Patch, SOURCE, TARGET, *precise, "--answers", *ANSWERS, "--noise", "--out", str(out),
        "--bos", "document")  # fmt: skip
    found = PatchingResult.load(out)
    model = interp.load("babel", dtype=torch.float32)
    first = [model.bos_id, *model.encode(SOURCE)]
    second = [model.bos_id, *model.encode(TARGET)]
    answers = {text: model.encode(text)[0] for text in ANSWERS}
    expected = patch(model, first, second, answers)
    assert found.log_probability[0].allclose(expected.log_probability[0], atol=1e-4)
    assert found.sources == ("source", "noise")
    shown = capsys.readouterr().out
    assert "target, unpatched" in shown
    assert "Patched: resid_post, 'last'." in shown
    lines = [line.split() for line in shown.splitlines()]
    assert sum(line[:2] == ["noise", "layer"] for line in lines) == model.n_layers
    assert f"{found.probability[0, 0, 3, 0, 1]:.4f}" in shown
    assert len(pd.read_csv(tmp_path / "patching.csv")) == 2 * model.n_layers * 3


@pytest.mark.slow
def test_the_patch_command_takes_texts_and_neurons(tmp_path, capsys):
    run(
        Patch, SOURCE, TARGET, "--answers", *ANSWERS,
        "--layers", "from", "--texts", "Montag", "Thursday",
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "Patched: resid_post, 'Thursday'." in shown
    assert "\nlayer 2 and later " in shown
    model = interp.load("babel")
    mask = torch.zeros(1, model.n_layers, model.d_mlp, dtype=torch.bool)
    mask[:, :, :20] = True
    interp.NeuronSelection(mask, ("de",)).to_json(tmp_path / "neurons.json")
    chosen = ("--part", "neurons", "--neurons", str(tmp_path), "--language", "de")
    run(Patch, SOURCE, TARGET, "--answers", *ANSWERS, *chosen, "--layers", "all")
    shown = capsys.readouterr().out
    assert "Patched: all layers, 'last'." in shown
    assert "\nsource             neurons of de " in shown
    assert "\nsource             random neurons of de " in shown
    with pytest.raises(ValueError, match="needs --neurons and --language"):
        run(Patch, SOURCE, TARGET, "--answers", *ANSWERS, "--part", "neurons")
    with pytest.raises(ValueError, match='attention="hooked"'):
        run(Patch, SOURCE, TARGET, "--answers", *ANSWERS, "--part", "heads")
    with pytest.raises(ValueError, match="exclude each other"):
        run(
            Patch, SOURCE, TARGET, "--answers", *ANSWERS, "--control", "a",
            "--texts", "Montag", "Thursday",
        )  # fmt: skip


@pytest.mark.slow
def test_the_patch_command_refuses_what_it_cannot_tell_or_align():
    with pytest.raises(ValueError, match=r"Der\| Tag.*target .*The\| day.* have 6 and 5 tokens"):
        run(Patch, SOURCE + " doch", TARGET, "--answers", *ANSWERS, "--at", "tokens")
    with pytest.raises(ValueError, match=r"Der\| Tag.*target .*The\| day.* have 6 and 5 words"):
        run(Patch, SOURCE + " doch", TARGET, "--answers", *ANSWERS, "--at", "words")
    with pytest.raises(ValueError, match="' Friday' and ' Friday night' both begin with the token"):
        run(Patch, SOURCE, TARGET, "--answers", " Friday", " Friday night")


@pytest.mark.slow
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


def test_the_relation_is_what_the_file_says_or_the_beginning_of_the_id():
    item = Item("capital:France", "The capital of France is", (" Paris", " Rome"), 0)
    assert relation(item) == "capital"
    assert relation(item._replace(id="0017", relation="The capital of [X]")) == "The capital of [X]"


def test_words_begin_with_and_without_their_space():
    model = interp.load("babel")
    found = first_tokens(model, " Dienstag.")
    assert {model.decode([id]) for id in found} == {
        model.decode(model.encode(text)[:1]) for text in ("Dienstag.", " Dienstag.")
    }


@pytest.mark.slow
def test_pairs_of_facts_are_of_one_relation_known_and_told_where_they_must_be(facts):
    model = interp.load("babel", dtype=torch.float32)
    tasks = align_tasks([read_task(str(facts), code) for code in ("de", "en")])
    answered = answer(model, tasks, "document")
    item = tasks[0].items[3]

    def encoded(item: Item) -> list[int]:
        return [model.bos_id or 0, *model.encode(item.prompt)]

    ids = torch.tensor([encoded(item)])
    logits = model.logits(ids, keep=1)[0, -1]
    scores = [max(float(logits[id]) for id in first_tokens(model, word)) for word in item.options]
    assert answered.known["de"][3] == (scores.index(max(scores)) == item.answer)
    firing = []
    for task in tasks:
        seen: list[torch.Tensor] = []
        look = [(model.site(2, "pre"), lambda values, hook, seen=seen: seen.append(values[0, -1]))]
        with model.hooks(look):
            model.body(torch.tensor([encoded(task.items[3])]))
        firing.append(seen[0] > 0)
    assert torch.equal(answered.shared[3][2], firing[0] & firing[1])
    # Everything is known, and some facts were never told in English.
    named = [Task("facts", task.language, task.items) for task in tasks]
    hidden = tuple(each._replace(held_out=n % 2 == 0) for n, each in enumerate(named[1].items))
    told = tuple(each._replace(held_out=False) for each in named[0].items)
    both = {"de": Task("facts", "de", told), "en": Task("facts", "en", hidden)}
    known = dict.fromkeys(both, [True] * len(hidden))
    everything = Answered(both, known, answered.shared, "document")
    asked, counts = crossings_of(model, everything, 4, 3, random.Random(0))
    assert counts["told"] == 8
    assert counts["held out"] == 3  # from German to English alone
    for each in asked:
        a, b = each.facts
        s, t = each.languages
        assert a != b
        assert relation(both[s].items[a]) == relation(both[t].items[b]) == each.relation
        assert not both[s].items[a].held_out
        assert not both[t].items[b].held_out
        assert both[t].items[a].held_out == each.held_out
        tokens = [id for ids in each.answers.values() for id in ids]
        assert len(tokens) == len(set(tokens))
        assert set(each.answers["A in s"]) == set(first_tokens(model, right(both[s].items[a])))
        wrong = set(each.answers["other in t"])
        options = {id for word in both[t].items[b].options for id in first_tokens(model, word)}
        assert wrong & options
        assert each.source.prompt == encoded(both[s].items[a])
        assert each.target.prompt == encoded(both[t].items[b])
        assert len(each.several) == 1
    told_in_both = [each for each in asked if not each.held_out]
    assert len(told_in_both) == counts["told"]
    again, _ = crossings_of(model, everything, 4, 3, random.Random(0))
    assert [each.facts for each in again] == [each.facts for each in asked]
    # The model knows the second half in German alone, so none of it is asked about in English.
    half = len(hidden) // 2
    partly = known | {"en": [n < half for n in range(len(hidden))]}
    asked, _ = crossings_of(
        model, replace(everything, known=partly), len(hidden), len(hidden), random.Random(0)
    )
    for to, last in (("en", half - 1), ("de", len(hidden) - 1)):
        assert max(each.facts[1] for each in asked if each.languages[1] == to) == last
    assert all(each.facts[0] < half for each in asked if each.languages[0] == "en")
    only_two = [n for n, each in enumerate(told) if relation(each) == relation(told[0])][:2]
    few = {code: [n in only_two for n in range(len(told))] for code in both}
    reason = crossing(
        model, Answered(both, few, (), "document"), ("de", "en"), (only_two[0], only_two[1])
    )
    assert reason in ("no third fact to compare with", "answers begin alike")


def planted_crossings() -> list[Crossing]:
    """All that can be asked of a planted model: token 2l + c is about c in l."""
    found = []
    for token in range(4):
        (s, a), (t, b) = divmod(token, 2), divmod(3 - token, 2)
        cells = {"A in s": (s, a), "B in s": (s, b), "A in t": (t, a), "B in t": (t, b)}
        answers = {
            cell: [4 + 2 * language + concept] for cell, (language, concept) in cells.items()
        }
        source = PatchSource([8, token], (f"t{token}",))
        target = PatchSource([8, 8, 3 - token], (f"t{3 - token}",))
        same = PatchSource([8, 8, 2 * t + a], (f"t{2 * t + a}",))
        controls = {
            "A in t": same,
            "another concept in s": PatchSource([8, 2 * s + b], (f"t{2 * s + b}",)),
        }
        languages = ("de", "ja") if s == 0 else ("ja", "de")
        found.append(
            Crossing(source, target, answers, controls, (), languages, (a, b), str(token), False)
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("apart", "expected"), [(True, "the language moves further"), (False, "they move together")]
)
def test_the_study_tells_whether_language_and_concept_are_apart(
    tmp_path, apart, expected, generator
):
    model = planted(tmp_path, apart)
    mask = torch.zeros(2, 2, 8, dtype=torch.bool)
    mask[:, 0, : 2 if apart else 4] = True  # what fires for one language alone
    selection = interp.NeuronSelection(mask, ("de", "ja"))
    shared = torch.zeros(2, 8, dtype=torch.bool)
    shared[0, 2:4] = True  # where the two are apart, what knows the concept
    rows = []
    for number, each in enumerate(planted_crossings()):
        for result in patched(model, each, selection, shared, generator):
            rows.append(rows_of(number, each, result))
    prompts = pd.concat(rows, ignore_index=True)
    table = averages(prompts, ["facts", "part", "at", "source", "layer"])
    line = table[(table["part"] == "language neurons") & (table["source"] == "source")].iloc[0]
    assert line["verdict"] == expected
    assert line["language moved"] > 0.9
    assert (line["concept moved"] < 0.1) == apart
    assert line["prompts"] == 4
    known = pd.DataFrame({"relation": ["r"], "held_out": [False], "known": [True], "chance": [0.1]})
    made = judged(stated("patch_across_languages"), measures(prompts, known), "planted")
    claims = {claim.name: claim for claim in made}
    keep = claims["language-neurons-keep-concept"]
    assert claims["language-neurons-move-language"].verdict == "holds"
    assert claims["language-neurons-switch-language"].verdict == "holds"
    assert keep.verdict == ("holds" if apart else "does not hold")
    assert keep.value == pytest.approx(line["concept moved"])
    carry = claims["all-shared-without-language"]
    assert (carry.verdict == "holds") == apart
    assert not any(name.startswith("untold") for name in claims)  # none was held out
    before = claims["language-before-concept"]
    assert before.value == pytest.approx(
        Questions(prompts, "told").last("language - concept").mean()
    )


def questions_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per question, source, part, position and layer, in the order of the study."""
    cells = dict.fromkeys(CELLS, 0.0) | {"unpatched A in t": 0.0, "unpatched A in s": 0.0}
    moved = {"concept moved": 0.0, "language moved": 0.0, "language - concept": 0.0}
    at = {"source": "source", "part": "resid_post", "at": "last", "layer": "0", "facts": "told"}
    return pd.DataFrame([cells | moved | at | row for row in rows])


def test_the_last_layer_is_no_place_where_concept_and_language_part():
    rows = [
        {"question": n, "relation": str(n), "layer": layer, "source": source}
        | {"language - concept": more if source == "source" else 0.0}
        for n in range(4)
        for source in ("source", "noise")
        for layer, more in (("0", 0.5), ("1", 0.1), ("2", 9.0))  # the last is the answer itself
    ]
    told = Questions(questions_table(rows), "told")
    assert told.last("language - concept").tolist() == pytest.approx([0.3] * 4)
    before = in_the_stream(told)["language-before-concept"]
    assert before.value.value == pytest.approx(0.5 + 0.1)  # in layers: the sum over them
    assert before.control.value == 0


def test_a_concept_moves_without_its_language_where_a_in_t_gains_more_than_a_in_s():
    unpatched = {"unpatched A in t": 0.1, "unpatched A in s": 0.05}
    rows = [
        {"question": n, "relation": str(n), "at": "subject", "layer": layer, "source": source}
        | {"A in t": in_t if source == "source" else 0.1, "A in s": 0.15}
        | unpatched
        for n in range(3)
        for source in ("source", "noise")
        for layer, in_t in (("0", 0.9), ("1", 0.6), ("2", 0.3))
    ]
    found = in_the_stream(Questions(questions_table(rows), "told"))["concept-without-language"]
    assert found.value.value == pytest.approx((0.6 - 0.1) - (0.15 - 0.05))
    assert found.control.value == pytest.approx(0 - (0.15 - 0.05))


def test_neurons_are_measured_beyond_random_ones_question_by_question():
    rows = [
        {"question": n, "relation": str(n), "layer": "all", "part": part, "concept moved": moved}
        for n in range(3)
        for part, moved in (("all-shared neurons", 0.5 + n), ("random all-shared neurons", 0.2))
    ]
    told = Questions(questions_table(rows), "told")
    beyond = told.beyond_random("concept moved", "all-shared neurons")
    assert beyond.tolist() == pytest.approx([0.3, 1.3, 2.3])


def test_questions_of_one_relation_are_one():
    moved = [0.1 * (n % 3) + 0.01 * n for n in range(12)]
    rows = [
        {"question": n, "relation": str(n % 3), "layer": "all", "part": "all neurons"}
        | {"concept moved": share}
        for n, share in enumerate(moved)
    ]
    told = Questions(questions_table(rows), "told")
    found = told.estimate(told.neurons("concept moved", "all neurons"))
    by_relation = mean_over_examples(torch.tensor(moved).double(), torch.arange(12) % 3)
    assert found is not None
    assert found.low.item() == pytest.approx(by_relation.low.item())
    assert found.high.item() == pytest.approx(by_relation.high.item())


def test_facts_that_were_never_told_are_those_asked_about_and_the_told_are_their_control():
    rows = [
        {"question": n, "relation": str(n % 3), "at": "subject", "source": source}
        | {"facts": facts, "A in t": share}
        for facts, first in (("told", 0), ("held_out", 6))
        for n in range(first, first + 6)
        for source, share in (
            ("source", 0.9 if facts == "held_out" else 0.4),
            ("A in t", 0.5),
            ("another concept in s", 0.1 * (n % 3)),
        )
    ]
    prompts = questions_table(rows)
    known = pd.DataFrame(
        {"relation": ["a", "b", "a", "b"], "held_out": [True, True, False, False]}
        | {"known": [True, False, True, True], "chance": [0.25] * 4}
    )
    made = measures(prompts, known)
    helped = made["untold-facts-helped"]
    assert helped.value.value == pytest.approx(0.4)
    assert helped.control.value == pytest.approx(-0.1)
    move = made["untold-facts-move"]
    assert (move.value.value, move.control.value) == (pytest.approx(0.9), pytest.approx(0.1))
    assert move.difference.value == pytest.approx(0.8)
    assert move.difference.high > move.difference.low  # paired with a control that varies
    assert made["untold-facts-known"].value.value == pytest.approx(0.25)


def test_neurons_are_compared_with_as_many_random_others(generator):
    language, shared = torch.zeros(2, 10).bool(), torch.zeros(2, 10).bool()
    language[0, :3], shared[1, :7] = True, True  # of seven in ten there are not as many others
    sets: Any = neuron_sets(language, shared, generator)
    random_language, random_shared = (
        sets[f"random {name} neurons"] for name in ("language", "all-shared")
    )
    assert random_language.sum(1).tolist() == [3, 0]
    assert not (random_language & language).any()
    assert random_shared.sum(1).tolist() == [0, 7]
    assert torch.equal(sets["all other neurons"], ~language)
    empty: Any = neuron_sets(torch.zeros(2, 10).bool(), shared, generator)
    assert "language neurons" not in empty


def test_verdicts_follow_the_intervals():
    def of(*ends: tuple[float, float]) -> str:
        low, high = zip(*ends, strict=True)
        return verdict(torch.tensor(low).double(), torch.tensor(high).double())

    assert of((-0.1, 0.1), (-0.1, 0.2), (-0.1, 0.1)) == "neither moves"
    assert of((-0.1, 0.1), (0.5, 0.9), (0.4, 0.9)) == "the language moves further"
    assert of((0.5, 0.9), (-0.1, 0.1), (-0.9, -0.4)) == "the concept moves further"
    assert of((0.5, 0.9), (0.5, 0.9), (-0.2, 0.2)) == "they move together"
    assert of((-0.1, 0.9), (0.1, 0.9), (-0.2, 0.5)) == "cannot tell"


def small(experiment: Experiment, facts: Path, out: Path) -> Any:
    study = Study(languages=("de", "en"), tokens=2000, n_shards=2, block_length=64, out=out)
    return replace(experiment.presets["tiny"][1], study=study, facts=str(facts), out=out)


@pytest.mark.campaign
def test_patching_is_studied_whole(facts, tmp_path, capsys):
    config = replace(small(patch_across_languages.experiment, facts, tmp_path), n_told=3)
    patch_across_languages.experiment.run(config)
    prompts, table = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("prompts", "table"))
    assert set(prompts["at"]) == {"last", "subject"}
    assert set(prompts["source"]) == {"source", "A in t", "another concept in s", "noise"}
    for name in ("language neurons", "all-shared neurons"):
        assert {name, f"random {name}", "all neurons"} <= set(prompts["part"])
    assert prompts.loc[:, list(CELLS)].to_numpy().sum(axis=1) == pytest.approx(1.0)
    # At the last token, the last layer is the source's own answer, in its own language.
    last = table.query("part == 'resid_post' and at == 'last' and source == 'source'")
    deepest = last[last["facts"] == "told"].iloc[-1]
    assert deepest["language moved"] > 0.9
    moved = pd.read_csv(tmp_path / "moved-told.csv")
    assert moved.iloc[5]["moved"] == pytest.approx(deepest["concept moved"])
    names = {claim.name for claim in interp.inference.load_claims(tmp_path / "claims.json")}
    assert {"concept-without-language", "all-shared-carry-concept"} <= names
    assert "verdict" in capsys.readouterr().out


@pytest.mark.slow
def test_the_lens_is_studied_whole(facts, tmp_path, capsys):
    config = replace(small(lens_by_language.experiment, facts, tmp_path), fraction=0.02)
    lens_by_language.experiment.run(config)
    names = ("lens", "top", "promoted")
    lens, top, promoted = (pd.read_csv(tmp_path / f"{name}.csv") for name in names)
    assert set(lens["language"]) == {"de", "en"}
    sums = [each["share"].sum() for _, each in top.groupby(["asked_in", "layer"])]
    assert sums == pytest.approx([1.0] * len(sums))
    assert set(promoted["neurons"]) == {"language neurons", "random neurons 0"}
    claims = {claim.name: claim for claim in interp.inference.load_claims(tmp_path / "claims.json")}
    found = LensResult.load(tmp_path / "lens_de.safetensors")
    lead = found.probability[:, 2:4, 1] - found.probability[:, 2:4, 0]
    assert found.languages == ("de", "en")
    assert lens_by_language.middle(6) == slice(2, 4)
    assert lens_by_language.pivot_minus_own([found]).mean() == pytest.approx(lead.mean().item())
    # There is no third language to set beside the pivot.
    assert set(claims) == {"pivot-tokens-first", "language-neurons-write-language"}
    assert "by layer" in capsys.readouterr().out
