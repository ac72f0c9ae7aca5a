"""Recording the values at hook points of a model while it runs, pass by pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from interp.models.as_transformer_lens import Hook
from interp.models.neuron_model import NeuronModel
from interp.results.words import Kind

Record = TypeVar("Record")


@contextmanager
def recording(
    model: NeuronModel,
    kinds: Sequence[Kind],
    extract: Callable[[Tensor], Record],
) -> Iterator[dict[tuple[Kind, int], list[Record]]]:
    """Within the block, records `extract(values)` of each site and layer in every pass.

    A hook that never runs has an empty list.
    """
    layers = range(model.n_layers)
    passes: dict[tuple[Kind, int], list[Record]] = {
        (kind, layer): [] for kind in kinds for layer in layers
    }

    def hook_for(records: list[Record]) -> Hook:
        def record(values: Tensor, hook: Any) -> None:
            records.append(extract(values))

        return record

    hooks = [
        (model.site(layer, kind), hook_for(records)) for (kind, layer), records in passes.items()
    ]
    with model.hooks(hooks):
        yield passes
