"""Named interventions and their changes, as all evaluations take them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from interp.interventions.edits import Change
from interp.models.neuron_model import NeuronModel

Changes = Change | Sequence[Change] | None
"""Changes that apply together: one, several (the first is outermost), or none."""


Under = Mapping[str, Changes]
"""Changes by name of the intervention. None: the unmodified model."""


@contextmanager
def applied(changes: Changes, model: NeuronModel) -> Iterator[None]:
    """Apply changes for the duration of a `with` block."""
    with ExitStack() as stack:
        for change in listed_changes(changes):
            stack.enter_context(model.hooks(change.hooks(model)))
        yield


def listed_changes(changes: Changes) -> tuple[Change, ...]:
    return () if changes is None else (changes,) if isinstance(changes, Change) else tuple(changes)


def check_under(model: NeuronModel, under: Under) -> dict[str, tuple[Change, ...]]:
    """The changes of each intervention, after checking that they fit the model."""
    if not isinstance(under, Mapping) or not under:
        raise ValueError(
            'There is no intervention: give names and changes, such as {"nothing": None, '
            '"off": neurons.change("de", interp.deactivate)}.'
        )
    named = {}
    for name, changes in under.items():
        given = [] if changes is None else changes
        given = list(given) if isinstance(given, Sequence) else [given]
        if wrong := [change for change in given if not isinstance(change, Change)]:
            raise ValueError(
                f"{name!r} is {type(wrong[0]).__name__}: give an interp.Change, several in a list, "
                'or None, such as neurons.change("de", interp.deactivate).'
            )
        named[name] = listed_changes(changes)
        for change in named[name]:
            change.check(model)
    return named


def plan_of(under: Mapping[str, Sequence[Change]]) -> dict[str, list[dict[str, Any]]]:
    """Everything that interventions change, as JSON."""
    return {name: [change.plan for change in changes] for name, changes in under.items()}
