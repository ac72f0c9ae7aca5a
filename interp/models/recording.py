"""What sites of a model give while it runs, kept pass by pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from interp.models.neuron_model import Hook, NeuronModel

Place = TypeVar("Place", bound=str)
Kept = TypeVar("Kept")


@contextmanager
def recording(
    model: NeuronModel,
    places: Sequence[Place],
    keep: Callable[[Tensor], Kept],
    hook_name: Callable[[NeuronModel, int, Any], str] = NeuronModel.site,
) -> Iterator[dict[tuple[Place, int], list[Kept]]]:
    """While the block runs, `keep` of what each place gives in each layer, an entry for each pass.

    A place that gives nothing has an empty list. `hook_name` says which hook a place is.
    """
    layers = range(model.n_layers)
    passes: dict[tuple[Place, int], list[Kept]] = {(p, n): [] for p in places for n in layers}

    def hook_for(entries: list[Kept]) -> Hook:
        def look(values: Tensor, hook: Any) -> None:
            entries.append(keep(values))

        return look

    hooks = [
        (hook_name(model, layer, place), hook_for(entries))
        for (place, layer), entries in passes.items()
    ]
    with model.hooks(hooks):
        yield passes
