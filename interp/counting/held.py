"""What a counter remembers of one site of a layer until another site of that layer arrives."""

from jaxtyping import Bool
from torch import Tensor

from interp.counting.batch import Batch
from interp.results.words import Kind


class Held:
    """Booleans of one of two sites of a layer, held until the other arrives."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Kind, tuple[int, ...], Tensor]] = {}

    def hold(
        self, kind: Kind, layer: int, happens: Bool[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        self._held[layer] = (kind, batch.rows, happens)

    def take(self, kind: Kind, layer: int, batch: Batch) -> Bool[Tensor, "batch pos neuron"] | None:
        """The booleans of the site that is not `kind`, on these rows. None: it has yet to arrive.

        The rows may be some of those held: if memory runs out after the first site was seen, the
        second arrives in parts.
        """
        held = self._held.get(layer)
        if held is None or held[0] == kind:
            return None
        _, rows, happens = held
        if rows[-1] == batch.rows[-1]:
            del self._held[layer]
        first = rows.index(batch.rows[0])
        return happens[first : first + len(batch.rows)]
