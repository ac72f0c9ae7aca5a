"""Switching categories off: the sets, their sizes, and every score against a hook for each set."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.evaluations.category_ablation import CategoryAblation, ablate_categories
from interp.evaluations.multiple_choice import choose, drop_ambiguous, encode_items
from interp.evaluations.neuron_sets import (
    EQUAL,
    RANDOM,
    Condition,
    conditions_for,
    draw_sets,
    random_units,
)
from interp.interventions.edits import Change, deactivate, intervene
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.scores.sharing import Sharing, sharing_categories
from interp.text.tasks import Item, Task
from tests import tiny_models
from tests.tiny_models import D_MLP, N_LAYERS

TEXTS = {
    "en": ("the other day", "in the city", "the end of the table"),
    "de": ("der andere Tag", "in der Stadt", "das Ende"),
    "es": ("el otro dia", "en la ciudad", "al fin de la mesa"),
}
OPTIONS = (("in the city", "quiet"), ("day", "never", "on"), ("a", "city"))
ANSWERS = (1, 0, 1)
NAMES = ("silent", "specific", "partly shared", "all shared")


def tasks_of(*languages: str) -> list[Task]:
    return [
        Task(
            "made",
            code,
            tuple(
                Item(str(place), TEXTS[code][place], OPTIONS[place], ANSWERS[place])
                for place in range(3)
            ),
        )
        for code in languages or TEXTS
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    return load(tiny_models.build("llama", tmp_path_factory.mktemp("llama")), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def everywhere(model: NeuronModel) -> CategoryAblation:
    return ablate_categories(model, tasks_of(), seeded(), n_draws=2, progress=False)


@pytest.fixture(scope="module")
def at_the_end(model: NeuronModel) -> CategoryAblation:
    return ablate_categories(model, tasks_of(), seeded(), tokens="last", n_draws=2, progress=False)


def slow_categories(model: NeuronModel, tasks: list[Task], place: int) -> Tensor:
    """How many gates are above zero at the last token of the prompt, by plain hooks."""
    number = torch.zeros(N_LAYERS, D_MLP, dtype=torch.int64)
    for task in tasks:
        ids = torch.tensor([encode_items(model, task)[place].rows[0]])
        ids = ids[:, : encode_items(model, task)[place].begin]
        gates: list[Tensor] = []

        def look(values: Tensor, hook: Any, gates: list[Tensor] = gates) -> None:
            gates.append(values[0, -1] > 0)

        with model.hooks([(model.site(layer, "pre"), look) for layer in range(N_LAYERS)]):
            model.logits(ids)
        number += torch.stack(gates)
    names = {0: Sharing.SILENT, 1: Sharing.SPECIFIC, len(tasks): Sharing.ALL_SHARED}
    return torch.tensor(
        [[names.get(n, Sharing.PARTLY_SHARED) for n in layer] for layer in number.tolist()]
    )


def some_sets() -> tuple[Tensor, Tensor, tuple[Condition, ...]]:
    active = torch.rand(3, N_LAYERS, D_MLP, generator=seeded(1)) > 0.6
    category = sharing_categories(active)
    conditions = conditions_for(3)
    sets, owner = draw_sets(category, conditions, 4, seeded(2))
    return category, torch.stack([sets, owner[:, None, None].expand_as(sets)]), conditions


# ---------------------------------------------------------------- which neurons


def test_whole_categories_part_the_neurons_and_equal_sets_are_equal_in_every_layer():
    category, both, conditions = some_sets()
    sets, owner = both[0].bool(), both[1][:, 0, 0]
    assert conditions[0] == Condition("nothing", "")
    assert not sets[owner == 0].any()
    whole = [sets[owner == conditions.index(Condition(name, name))] for name in NAMES]
    assert torch.equal(torch.cat(whole).sum(dim=0), torch.ones(N_LAYERS, D_MLP, dtype=torch.int64))
    counts = torch.stack([each[0].sum(dim=1) for each in whole])
    smallest = counts.amin(dim=0)
    assert (smallest > 0).all()
    for place, (off, size) in enumerate(conditions[1:], start=1):
        mine = sets[owner == place]
        assert len(mine) == (1 if off == size else 4)
        expected = smallest if size == EQUAL else counts[NAMES.index(size)]
        for drawn in mine:
            assert torch.equal(drawn.sum(dim=1), expected)
            if off != RANDOM:
                assert (category[drawn] == NAMES.index(off)).all()


def test_draws_differ_and_every_neuron_of_the_pool_has_its_chance():
    pool = torch.zeros(2, 20, dtype=torch.bool)
    pool[0, :10] = True
    pool[1, 5:] = True
    size = torch.tensor([5, 3])
    generator = seeded()
    count = torch.zeros(2, 20)
    for _ in range(2000):
        count += random_units(pool, size, generator)
    assert not count[~pool].any()
    assert (count[0, :10] / 2000 - 0.5).abs().max() < 0.05
    assert (count[1, 5:] / 2000 - 0.2).abs().max() < 0.05


def test_with_two_languages_nothing_is_partly_shared():
    assert {off for off, _ in conditions_for(2)} == {
        *("nothing", "silent", "specific", "all shared", RANDOM)
    }
    assert len(conditions_for(3)) == 1 + 4 * 2 + 5


# ---------------------------------------------------------------- against plain hooks


def slow_all(
    model: NeuronModel, task: Task, place: int, off: Bool[Tensor, "layer neuron"]
) -> tuple[bool, float]:
    """Right or wrong and the answer's probability, by `choose` within one intervention."""
    item = task.items[place]
    one = Task(task.name, task.language, (item,))
    change = Change(off, deactivate) if off.any() else None
    (found,) = choose(model, [one], {"it": change}, progress=False)
    return bool(found.correct[0]), math.exp(found.log_likelihood[0, item.answer].item())


def slow_last(
    model: NeuronModel, task: Task, place: int, off: Bool[Tensor, "layer neuron"]
) -> tuple[bool, float]:
    """The same for first tokens, with the edit at the last token of the prompt."""
    encoded = encode_items(model, task)[place]
    ids = torch.tensor([encoded.rows[0][: encoded.begin]])
    if off.any():
        with intervene(model, off, deactivate, tokens="last"):
            logits = model.logits(ids)[0, -1]
    else:
        logits = model.logits(ids)[0, -1]
    firsts = [row[encoded.begin] for row in encoded.rows]
    share = logits.softmax(dim=-1)[firsts]
    answer = task.items[place].answer
    return bool(share.argmax() == answer), share[answer].item()


def test_with_nothing_off_the_scores_are_those_of_a_choice_and_categories_those_of_gates(
    model, everywhere
):
    whole = [everywhere.conditions.index(Condition(name, name)) for name in NAMES]
    tasks, wrong_above_the_mean = tasks_of(), 0
    for place in range(3):
        category = slow_categories(model, tasks, place)
        sizes = category.flatten().bincount(minlength=len(NAMES))
        assert everywhere.neurons[place, whole].tolist() == sizes.tolist()
        assert sizes.min() > 0
        for column, task in enumerate(tasks):
            (found,) = choose(model, [replace(task, items=(task.items[place],))], progress=False)
            likelihood, answer = found.log_likelihood[0], task.items[place].answer
            right = bool(likelihood.argmax() == answer)
            wrong_above_the_mean += not right and bool(likelihood[answer] > likelihood.nanmean())
            assert everywhere.correct[place, 0, column] == right
            probability = everywhere.probability[place, 0, column].item()
            assert probability == pytest.approx(likelihood[answer].exp().item(), rel=1e-6)
    assert wrong_above_the_mean


@pytest.mark.slow
@pytest.mark.parametrize("where", ["all", "last"])
def test_scores_are_those_of_one_intervention_at_a_time(model, where, everywhere, at_the_end):
    found = everywhere if where == "all" else at_the_end
    slow = slow_all if where == "all" else slow_last
    tasks = tasks_of()
    moved = 0.0
    for place in range(3):
        category = slow_categories(model, tasks, place)
        for condition, (off, size) in enumerate(found.conditions):
            if off not in ("nothing", size):
                continue  # drawn
            units = torch.zeros_like(category, dtype=torch.bool)
            if off == size:
                units = category == NAMES.index(off)
            assert found.neurons[place, condition] == units.sum()
            for column, task in enumerate(tasks):
                right, probability = slow(model, task, place, units)
                assert found.correct[place, condition, column] == right
                mine = found.probability[place, condition, column].item()
                assert mine == pytest.approx(probability, rel=1e-6)
                untouched = found.probability[place, 0, column].item()
                moved = max(moved, abs(mine / untouched - 1))
    assert moved > 0.5  # there is an effect to be seen


@pytest.mark.slow
def test_drawn_sets_are_scored_by_the_mean_over_draws(model):
    tasks = tasks_of()
    found = ablate_categories(model, tasks, seeded(7), n_draws=3, progress=False)
    generator = seeded(7)
    place_of = found.conditions.index(Condition("specific", EQUAL))
    for place in range(3):
        category = slow_categories(model, tasks, place).to(torch.uint8)
        sets, owner = draw_sets(category, found.conditions, 3, generator)
        mine = sets[owner == place_of]
        scores = [slow_all(model, tasks[1], place, off) for off in mine]
        expected = sum(score[1] for score in scores) / 3
        assert found.probability[place, place_of, 1].item() == pytest.approx(expected, rel=1e-6)
        expected = sum(score[0] for score in scores) / 3
        assert found.correct[place, place_of, 1].item() == pytest.approx(expected)


@pytest.mark.slow
def test_batches_of_sets_do_not_change_a_score(model, everywhere):
    found = ablate_categories(
        model, tasks_of(), seeded(), n_draws=2, tokens_per_batch=150, progress=False
    )
    torch.testing.assert_close(found.probability, everywhere.probability, rtol=1e-9, atol=0)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result_and_another_another(model, everywhere):
    again = ablate_categories(model, tasks_of(), seeded(), n_draws=2, progress=False)
    other = ablate_categories(model, tasks_of(), seeded(5), n_draws=2, progress=False)
    assert torch.equal(again.probability, everywhere.probability)
    drawn = [place for place, (off, _) in enumerate(other.conditions) if off == RANDOM]
    kept = everywhere.conditions.index(Condition("silent", "silent"))
    assert (again.probability[:, drawn] - other.probability[:, drawn]).abs().min() > 0
    torch.testing.assert_close(other.probability[:, kept], everywhere.probability[:, kept])


def test_options_that_begin_alike_are_one_at_the_last_token(model):
    items = {
        code: Item("1", text[0], ("the city", "the day", "never"), 1)
        for code, text in TEXTS.items()
    }
    tasks = [Task("made", code, (item, item._replace(id="2"))) for code, item in items.items()]
    found = ablate_categories(model, tasks, seeded(), tokens="last", n_draws=1, progress=False)
    assert (found.chance == 0.5).all()
    for column, task in enumerate(tasks):
        encoded = encode_items(model, task)[0]
        logits = model.logits(torch.tensor([encoded.rows[0][: encoded.begin]]))[0, -1]
        firsts = [row[encoded.begin] for row in encoded.rows]
        assert firsts[0] == firsts[1] != firsts[2]
        assert found.correct[0, 0, column] == (logits[firsts[0]] > logits[firsts[2]])
    alike = [
        Task("made", task.language, tuple(i._replace(options=i.options[:2]) for i in task.items))
        for task in tasks
    ]
    with pytest.raises(ValueError, match="All options of 2 items of made, such as '1', begin with"):
        ablate_categories(model, alike, seeded(), tokens="last", progress=False)
    mixed = [alike[0], *tasks[1:]]  # one language is enough
    mixed[0] = Task("made", "en", (alike[0].items[0], tasks[0].items[1]))
    left = drop_ambiguous(model, mixed)
    assert [[item.id for item in task.items] for task in left] == [["2"]] * 3


# ---------------------------------------------------------------- statistics


def made_up() -> CategoryAblation:
    """Two languages, four examples: scores that can be checked by hand."""
    conditions = conditions_for(2)
    shape = (4, len(conditions), 2)
    correct = torch.ones(shape, dtype=torch.float64)
    shared = conditions.index(Condition("all shared", "all shared"))
    random = conditions.index(Condition(RANDOM, "all shared"))
    correct[:, shared, 0] = torch.tensor([0, 0, 0, 1]).double()
    correct[:, random, 0] = torch.tensor([0, 1, 1, 1]).double()
    return CategoryAblation(
        correct=correct,
        probability=correct / 2,
        neurons=torch.full(shape[:2], 7),
        chance=torch.full((4, 2), 0.25, dtype=torch.float64),
        tokens="all",
        conditions=conditions,
        prompts=tuple("abcd"),
        groups=tuple("abcd"),
        task="made",
        languages=("en", "de"),
    )


def test_drops_and_excesses_by_hand():
    found = made_up()
    shared = found.conditions.index(Condition("all shared", "all shared"))
    random = found.conditions.index(Condition(RANDOM, "all shared"))
    assert found.accuracy("en").value[shared] == 0.25
    assert found.accuracy_drop("en").value[shared] == 0.75
    assert found.accuracy_drop("en").value[random] == 0.25
    assert found.accuracy_excess("en").value[shared] == 0.5
    assert found.accuracy_excess("en").value[random] == 0
    assert found.probability_excess("en").value[shared] == 0.25
    assert found.accuracy_drop().value[shared] == 0.375  # the mean over both languages
    # differences 0 1 1 0 have a standard deviation of 1/sqrt(3)
    error = found.accuracy_excess("en").standard_error[shared].item()
    assert error == pytest.approx(math.sqrt(1 / 3) / 2)
    with pytest.raises(ValueError, match="'fr' is not in this result, which covers en, de"):
        found.accuracy("fr")


def test_the_table_holds_both_comparisons(everywhere):
    frame = everywhere.to_frame()
    assert len(frame) == 4 * len(everywhere.conditions)
    pooled = frame[frame["language"] == "all"].set_index(["off", "size"])
    assert pooled.loc[("nothing", ""), "accuracy_drop"] == 0
    equal = pooled.xs(EQUAL, level="size")
    assert set(equal.index) == {*NAMES, RANDOM}
    assert equal["neurons"].nunique() == 1
    for name in NAMES:
        assert pooled.loc[(name, name), "neurons"] == pooled.loc[(RANDOM, name), "neurons"]
    total = sum(pooled.loc[(name, name), "neurons"] for name in NAMES)
    assert total == pytest.approx(N_LAYERS * D_MLP)
    assert (frame["probability_low"] <= frame["probability"]).all()
    assert set(frame["where"]) == {"all"}


def test_a_result_comes_back_from_disk(tmp_path: Path, at_the_end):
    at_the_end.save(tmp_path / "off.safetensors")
    again = CategoryAblation.load(tmp_path / "off.safetensors")
    assert again.conditions == at_the_end.conditions
    assert again.tokens == "last"
    assert again.to_frame().equals(at_the_end.to_frame())


def test_what_cannot_be_asked_is_refused(model):
    with pytest.raises(ValueError, match="give the task in two or more"):
        ablate_categories(model, tasks_of("en"), seeded())
    short = [tasks_of("en")[0], tasks_of("de")[0].where(lambda item: item.id != "1")]
    with pytest.raises(ValueError, match="made in de lacks 1 items"):
        ablate_categories(model, short, seeded())
    with pytest.raises(ValueError, match="n_draws is 0"):
        ablate_categories(model, tasks_of(), seeded(), n_draws=0)
