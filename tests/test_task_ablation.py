"""What a task loses without a language's units: the arithmetic by hand, and the controls drawn."""

from typing import Any

import pytest
import torch

from interp.evaluations import ablation
from interp.evaluations.ablation import TaskAblation, ablate_tasks
from interp.evaluations.task_results import Choices
from interp.models.load import load
from interp.selections.neuron_selection import NeuronSelection
from interp.text.tasks import Item, Task
from tests import tiny_models
from tests.tiny_models import D_MLP, N_LAYERS

N = 20


def answered(right: range, intervention: str = "nothing") -> Choices:
    """Of twenty items with two options, these answered right."""
    correct = torch.zeros(N, dtype=torch.float64)
    correct[list(right)] = 1
    names = tuple(map(str, range(N)))
    return Choices(
        log_likelihood=torch.stack([correct, 1 - correct], dim=1),
        tokens=torch.ones(N, 2, dtype=torch.int64),
        bytes=torch.ones(N, 2, dtype=torch.int64),
        answer=torch.zeros(N, dtype=torch.int64),
        normalize="none",
        ids=names,
        groups=names,
        task="made",
        language="de",
        intervention=intervention,
    )


def ablated(**right: range) -> TaskAblation:
    """German and English neurons off, each with two random draws; the items answered right."""
    named = {name.replace("_", " "): some for name, some in right.items()}
    answers = {name: answered(some, name) for name, some in named.items()}
    return TaskAblation(answers=(answers,), sizes={"de": 7, "en": 5}, n_draws=2, seed=0)


@pytest.fixture(scope="module")
def found() -> TaskAblation:
    """German neurons cost half of the answers; without English ones, more are right than before."""
    return ablated(
        nothing=range(15),
        de=range(5),
        de_random_0=range(15),
        de_random_1=range(13),
        en=range(N),
        en_random_0=range(14),
        en_random_1=range(16),
    )


def test_a_drop_is_from_the_untouched_model_and_an_excess_from_the_mean_of_the_draws(found):
    rows = found.to_frame().set_index("off")
    assert rows["accuracy"].to_dict() == {"nothing": 0.75, "de": 0.25, "en": 1.0}
    assert rows["random"][["de", "en"]].tolist() == pytest.approx([0.7, 0.75])
    assert rows["drop"][["de", "en"]].tolist() == pytest.approx([0.5, -0.25])
    assert rows["excess"][["de", "en"]].tolist() == pytest.approx([0.45, -0.25])
    assert rows.loc["de", "excess_low"] < 0.45 < rows.loc["de", "excess_high"]


def test_a_star_marks_a_fall_and_a_rise_whose_interval_excludes_zero(found):
    (row,) = [line for line in found.table().splitlines() if line.startswith("made")]
    assert "-0.500* (-0.050)" in row
    assert "+0.250* (+0.000)" in row
    same = dict.fromkeys(("nothing", "de_random_0", "de_random_1", "en_random_0"), range(15))
    little = ablated(**same, en_random_1=range(15), de=range(14), en=range(15))
    assert "*" not in little.table().replace("* the 95 %", "")


@pytest.mark.parametrize("share", [0.4, 0.5])
def test_random_units_are_as_many_in_every_layer_and_none_of_the_selection(
    share, tmp_path, monkeypatch
):
    """At half of a layer there is one set left to draw from: all the others."""
    model = load(tiny_models.build("llama", tmp_path / "model"))
    mask = torch.zeros(1, N_LAYERS, D_MLP, dtype=torch.bool)
    mask[:, :, : int(share * D_MLP)] = True
    selection = NeuronSelection(mask, ("de",))
    seen: dict[str, Any] = {}

    def spy(model: Any, tasks: Any, under: Any, **options: Any) -> list[Choices]:
        seen.update(under)
        return [answered(range(N)) for _ in under] if tasks else []

    monkeypatch.setattr(ablation, "choose", spy)
    task = Task("made", "de", (Item("a", "in der", (" Stadt", " Tag"), 0),))
    ablate_tasks(model, [task], selection, n_draws=2, progress=False)
    assert list(seen) == ["nothing", "de", "de random 0", "de random 1"]
    assert torch.equal(seen["de"].units, mask[0])
    for draw in range(2):
        drawn = seen[f"de random {draw}"].units
        assert torch.equal(drawn.sum(dim=-1), mask[0].sum(dim=-1))
        assert not (drawn & mask[0]).any()
