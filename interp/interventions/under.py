"""Named interventions and their changes, as all evaluations take them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from interp.interventions.edits import Change
from interp.models.as_transformer_lens import Hook, HookPoints
from interp.models.neuron_model import NeuronModel

HookFunction = tuple[HookPoints, Hook]
"""The name of a hook and its function, or a filter of names and a function, as `fwd_hooks` of
TransformerLens takes them. They apply to all tokens, and cannot be saved or resumed."""

Applied = Change | HookFunction

Changes = Applied | Sequence[Applied] | None
"""What applies together: one, several (the first is outermost), or none."""


Under = Mapping[str, Changes]
"""Changes by name of the intervention. None: the unmodified model."""


@contextmanager
def applied(changes: Changes, model: NeuronModel) -> Iterator[None]:
    """Apply changes for the duration of a `with` block."""
    with ExitStack() as stack:
        for change in listed_changes(changes):
            hooks = change.hooks(model) if isinstance(change, Change) else [change]
            stack.enter_context(model.hooks(hooks))
        yield


def listed_changes(changes: Any) -> tuple[Any, ...]:
    """What applies together, in a tuple; whether it is a change is for `check_under` to say."""
    if changes is None:
        return ()
    several = isinstance(changes, Sequence) and not isinstance(changes, str)
    return tuple(changes) if several and not _is_hook_function(changes) else (changes,)


def _is_hook_function(change: Any) -> bool:
    if not (isinstance(change, tuple) and len(change) == 2):
        return False
    points, function = change
    return (isinstance(points, str) or callable(points)) and callable(function)


def check_under(model: NeuronModel, under: Under) -> dict[str, tuple[Applied, ...]]:
    """The changes of each intervention, after checking that they fit the model."""
    if not isinstance(under, Mapping) or not under:
        raise ValueError(
            'There is no intervention: give names and changes, such as {"nothing": None, '
            '"off": neurons.change("de", interp.deactivate)}.'
        )
    named = {}
    for name, changes in under.items():
        named[name] = listed_changes(changes)
        for change in named[name]:
            if isinstance(change, Change):
                change.check(model)
            elif _is_hook_function(change):
                _check_points(model, name, change[0])
            else:
                raise ValueError(
                    f"{name!r} is {type(change).__name__}: give an interp.Change, several in a "
                    'list, or None, such as neurons.change("de", interp.deactivate); or the name '
                    "of a hook with its function, as TransformerLens takes them."
                )
    return named


def _check_points(model: NeuronModel, name: str, points: HookPoints) -> None:
    """Refuse a hook that never runs."""
    names = model.bridge.hook_dict
    if isinstance(points, str) and points not in names:
        raise ValueError(
            f"{name!r} is at {points}, and {model.name} has no such hook: build names with "
            "model.site(layer, kind)."
        )
    if not isinstance(points, str) and not any(map(points, names)):
        raise ValueError(
            f"The filter of {name!r} chooses none of the hooks of {model.name}, which are in "
            "model.hook_dict: give another."
        )


def plan_of(under: Mapping[str, Sequence[Applied]]) -> dict[str, list[dict[str, Any]]]:
    """Everything that interventions change, as JSON."""
    for name, changes in under.items():
        if not all(isinstance(change, Change) for change in changes):
            raise ValueError(
                f"{name!r} holds a hook function, and nothing shows whether a function is the one "
                "that an earlier call ran, so it cannot be resumed: leave `out` out, or give an "
                "interp.Change."
            )
    return {
        name: [change.plan for change in changes if isinstance(change, Change)]
        for name, changes in under.items()
    }
