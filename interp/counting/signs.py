"""Which neurons fire at the last token of each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import reduce
from jaxtyping import Bool, UInt8
from torch import Tensor

from interp.counting.batch import Neurons
from interp.counting.bits import unpack_bits
from interp.counting.caches import Masks, Shards, signs_at
from interp.models.bare_model import BareModel
from interp.results.display import Cells, counted, layer_cells, listed
from interp.results.saved import Saved
from interp.results.words import FiresBy


@dataclass(frozen=True, kw_only=True)
class FiringSigns(Saved):
    """Which neurons fire at the last token of each prompt, one bit per neuron.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> prompts = interp.read_prompts({"en": ["One is"], "de": ["Eins ist"]}, ["en", "de"])
    >>> rows, keep = interp.text.prompt_rows(prompts, exact), interp.Keep(signs="gate")
    >>> run = interp.collect(exact, rows, keep=keep, progress=False)
    >>> run.signs.fires(5).shape
    torch.Size([1, 2, 2048])
    """

    kind = "FiringSigns"
    made_by = "interp.collect(model, corpora, out=...), or `interp collect` on the command line"

    bits: UInt8[Tensor, "prompt language layer byte"]
    """Eight neurons per byte, the first in the lowest bit."""

    prompts: tuple[str, ...]
    """The prompts' ids, the same in every language."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    d_mlp: int
    """Neurons per layer; the last byte may have unused bits."""

    fires_by: FiresBy = "gate"
    """The value compared with the threshold."""

    threshold: float = 0.0
    """The neuron fires where the value exceeds this."""

    @staticmethod
    def from_caches(
        caches: Shards,
        *,
        keep: Masks | None = None,
        prompts: Sequence[str] | None = None,
        fires_by: FiresBy = "gate",
        threshold: float = 0.0,
        model: Neurons | BareModel | None = None,
    ) -> "FiringSigns":
        """Signs at the last token of each row, where row i is prompt i in every language.

        The last token is the last that counts by `keep`, see `FiringStats.from_caches`, so prompts
        may differ in length. Several caches of a language are one after the other. `prompts` are
        the prompts' ids; by default, their numbers.

        >>> ids = {code: rows.ids[:4].long() for code, rows in text.rows.items()}
        >>> caches = {code: model.run_with_cache(ids[code])[1] for code in ids}
        >>> interp.FiringSigns.from_caches(caches).fires(5).shape
        torch.Size([4, 3, 2048])
        """
        bits, d_mlp = signs_at(
            caches, -1, keep=keep, fires_by=fires_by, threshold=threshold, model=model
        )
        names = [str(number) for number in range(len(bits))] if prompts is None else prompts
        if len(names) != len(bits):
            raise ValueError(
                f"There are {len(names)} prompts and {len(bits)} rows in each language: row i must "
                "be prompt i."
            )
        return FiringSigns(
            bits=bits,
            prompts=tuple(names),
            languages=tuple(caches),
            d_mlp=d_mlp,
            fires_by=fires_by,
            threshold=threshold,
        )

    def __repr__(self) -> str:
        return (
            f"FiringSigns({counted(len(self.prompts), 'prompt')} in {listed(self.languages)}; "
            f"{self.bits.shape[2]} layers of {self.d_mlp:,} neurons, which fire where the "
            f"{self.fires_by} is above {self.threshold:g})"
        )

    def _cells(self) -> Cells:
        step = -(-len(self.prompts) // 50)
        few = replace(self, bits=self.bits[::step], prompts=self.prompts[::step])
        layers = [
            reduce(few.fires(layer).double(), "prompt language neuron -> language", "mean")
            for layer in range(self.bits.shape[2])
        ]
        note = f"share of a layer's neurons that fire, over {counted(len(few.prompts), 'prompt')}"
        shares = torch.stack(layers, dim=1).tolist()
        return layer_cells([[code] for code in self.languages], shares, note)

    def fires(self, layer: int) -> Bool[Tensor, "prompt language neuron"]:
        """One layer's bits, unpacked."""
        return unpack_bits(self.bits[:, :, layer], self.d_mlp)
