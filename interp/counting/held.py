"""What a counter holds of one site of a layer until another site of that layer arrives."""

from jaxtyping import Int8
from torch import Tensor

from interp.counting.batch import Batch
from interp.results.words import Observed


class Held:
    """What was found at one of two sites of a layer, until the other arrives."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Observed, tuple[int, ...], Tensor]] = {}

    def hold(
        self, kind: Observed, layer: int, found: Int8[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        self._held[layer] = (kind, batch.rows, found)

    def take(
        self, kind: Observed, layer: int, batch: Batch
    ) -> Int8[Tensor, "batch pos neuron"] | None:
        """What was found at the site that is not `kind`, on these rows. None: it has yet to arrive.

        The rows may be some of those held: if memory runs out after the first site was seen, the
        second arrives in parts.
        """
        held = self._held.get(layer)
        if held is None or held[0] == kind:
            return None
        _, rows, found = held
        if rows[-1] == batch.rows[-1]:
            del self._held[layer]
        first = rows.index(batch.rows[0])
        return found[first : first + len(batch.rows)]
