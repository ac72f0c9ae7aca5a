"""How often a neuron's gate and its linear branch are above zero, together and alone."""

from dataclasses import dataclass, replace

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from interp.counting.batch import Batch, Neurons, zeros
from interp.counting.bits import as_bytes, count_bytes, where_positive
from interp.counting.caches import Masks, Shards, parts_of
from interp.counting.held import Held
from interp.counting.parts import Parts, check_alike
from interp.models.bare_model import BareModel
from interp.results.display import Cells, counted, layer_cells, of_neurons
from interp.results.saved import Saved
from interp.results.words import Observed

CASES = ("both", "gate", "linear", "neither")
"""Which of the two branches is above zero, in the order of the case axis."""


@dataclass(frozen=True, kw_only=True)
class SignCases(Saved):
    """On how many tokens both branches of a gated neuron are above zero, only one, or neither.

    The neuron's output is act(gate) · linear. In the case "both" it is large and positive, in
    "gate" large and negative; with SiLU or GELU it is slightly negative in "linear" and slightly
    positive in "neither". So a neuron that fires alike in two languages may write opposite things
    in them (GLUScope, arXiv 2602.23826).

    >>> keep = interp.Keep(sign_cases=True)
    >>> run = interp.collect(model, text, keep=keep, progress=False)
    >>> run.sign_cases.share.shape  # language, case, layer, neuron
    torch.Size([3, 4, 6, 2048])
    >>> both, gate_alone, _, _ = run.sign_cases.share[0]
    >>> bool((both + gate_alone).allclose(run.firing.rate[0]))
    True
    """

    kind = "SignCases"
    made_by = "interp.collect with keep=interp.Keep(sign_cases=True), or `interp collect`"

    counts: Int64[Tensor, "shard language case layer neuron"]
    """Tokens, by `CASES`."""

    tokens: Int64[Tensor, "shard language"]
    """Number of tokens read."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    @staticmethod
    def of(parts: Parts) -> "SignCases":
        counts, tokens = parts.by_shard("sign_cases.counts", "sign_cases.tokens")
        return SignCases(counts=counts, tokens=tokens[..., 0], languages=parts.languages)

    @staticmethod
    def from_caches(
        caches: Shards,
        *,
        keep: Masks | None = None,
        special_tokens: bool = False,
        model: Neurons | BareModel | None = None,
    ) -> "SignCases":
        """From caches with `hook_pre` and `hook_pre_linear` of every MLP; see
        `FiringStats.from_caches`.

        >>> tokens = {code: rows.ids.long() for code, rows in text.rows.items()}
        >>> caches = {code: model.run_with_cache(ids)[1] for code, ids in tokens.items()}
        >>> cases = interp.counting.SignCases.from_caches(caches)
        >>> bool((cases.counts[:, :, :2].sum(2).sum(0) == stats.total).all())
        True
        """
        parts = parts_of(caches, SignCasesCounter, keep, special_tokens, model, by_shard=True)
        return SignCases.of(parts)

    def __repr__(self) -> str:
        shape, tokens = self.counts.shape[3:], self.tokens.sum(0).tolist()
        text = of_neurons(self.languages, shape, tokens)
        return f"SignCases({text} in {counted(len(self.tokens), 'shard')})"

    def _cells(self) -> Cells:
        shares = reduce(self.share, "language case layer neuron -> language case layer", "mean")
        rows = [[code, case] for code in self.languages for case in CASES]
        values = rearrange(shares, "language case layer -> (language case) layer").tolist()
        return layer_cells(rows, values, "share of tokens, over the neurons of a layer")

    @property
    def share(self) -> Float64[Tensor, "language case layer neuron"]:
        """Share of a language's tokens in each case; the four add up to one."""
        total = reduce(
            self.counts, "shard language case layer neuron -> language case layer neuron", "sum"
        )
        return total.double() / rearrange(self.tokens.sum(0), "language -> language 1 1 1")

    def shards(self, shards: list[int]) -> "SignCases":
        """The same counts of a subset of the shards."""
        return replace(self, counts=self.counts[shards], tokens=self.tokens[shards])

    def merge(self, other: "SignCases") -> "SignCases":
        """The shards of both; the texts must differ, or tokens are counted twice."""
        check_alike(self, other, self.counts.shape[2:] == other.counts.shape[2:])
        counts, tokens = (
            torch.cat([getattr(self, name), getattr(other, name)]) for name in ("counts", "tokens")
        )
        return replace(self, counts=counts, tokens=tokens)


def check_gated(model: Neurons) -> None:
    """Refuse a model whose neurons have one branch."""
    if not model.gated:
        raise ValueError(
            f"The neurons of {model.name} have no linear branch besides the gate, so there are no "
            "cases of signs: leave out sign_cases."
        )


class SignCasesCounter:
    """Counts the four combinations of signs of a neuron's two branches."""

    kinds: tuple[Observed, ...] = ("pre", "pre_linear")

    def __init__(self, model: Neurons) -> None:
        check_gated(model)
        self._held = Held()
        self._counts = zeros(model, len(CASES), model.d_mlp)
        self._tokens = 0

    def update(
        self, kind: Observed, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        above, other = as_bytes(where_positive, values), self._held.take(kind, layer, batch)
        if other is None:  # either branch may be computed first
            self._held.hold(kind, layer, above, batch)
            return
        gates, linears = (above, other) if kind == "pre" else (other, above)
        for gate, linear in zip(batch.slices(gates), batch.slices(linears), strict=True):
            n_gate, n_linear, n_both = map(count_bytes, (gate, linear, gate & linear))
            neither = len(gate) - n_gate - n_linear + n_both
            cases = [n_both, n_gate - n_both, n_linear - n_both, neither]
            self._counts[layer] += torch.stack(cases)
            self._tokens += len(gate) if layer == 0 else 0

    def tensors(self) -> dict[str, Tensor]:
        counts = torch.stack([counts.cpu() for counts in self._counts], dim=1)
        return {"sign_cases.counts": counts, "sign_cases.tokens": torch.tensor([self._tokens])}
