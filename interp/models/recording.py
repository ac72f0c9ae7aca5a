"""Recording the values at hook points of a model while it runs, pass by pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from interp.models.as_transformer_lens import Hook
from interp.models.neuron_model import NeuronModel

Point = TypeVar("Point", bound=str)
Record = TypeVar("Record")


@contextmanager
def recording(
    model: NeuronModel,
    points: Sequence[Point],
    extract: Callable[[Tensor], Record],
    hook_name: Callable[[NeuronModel, int, Any], str] = NeuronModel.site,
) -> Iterator[dict[tuple[Point, int], list[Record]]]:
    """Within the block, records `extract(values)` of each hook point and layer in every pass.

    A hook that never runs has an empty list. `hook_name` maps a point to its hook.
    """
    layers = range(model.n_layers)
    passes: dict[tuple[Point, int], list[Record]] = {(p, n): [] for p in points for n in layers}

    def hook_for(records: list[Record]) -> Hook:
        def record(values: Tensor, hook: Any) -> None:
            records.append(extract(values))

        return record

    hooks = [
        (hook_name(model, layer, point), hook_for(records))
        for (point, layer), records in passes.items()
    ]
    with model.hooks(hooks):
        yield passes
