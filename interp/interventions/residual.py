"""A baseline for steering: push the residual stream by the difference of language means."""

from dataclasses import dataclass

import torch
from einops import einsum, reduce
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from interp.counting.batch import Batch
from interp.counting.observe import batches, observe
from interp.interventions.edits import Edit, Site, push
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results.bars import tqdm
from interp.results.display import Cells, Shown, layer_cells, listed
from interp.results.words import Kind
from interp.text.corpora import Corpora


@dataclass(frozen=True, eq=False)
class ResidualMeans(Shown):
    """Means of the residual stream over the tokens of each language, after each layer."""

    mean: Float64[Tensor, "language layer unit"]
    """In the unit of the residual stream; special tokens do not count."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    def __repr__(self) -> str:
        n_layers, width = self.mean.shape[1:]
        return f"ResidualMeans({listed(self.languages)}; {n_layers} layers of {width:,} units)"

    def _cells(self) -> Cells:
        names = [[code] for code in self.languages]
        return layer_cells(
            names, self.mean.norm(dim=-1).tolist(), "length of the mean after each layer"
        )

    def towards(
        self, language: str, layer: int, strength: float = 1.0
    ) -> tuple[dict[Site, Bool[Tensor, "layer unit"]], Edit]:
        """Units and edit for `intervene(model, *means.towards(...))`: a push in one layer.

        Adds `strength` times the language's mean minus the mean of the other languages' means.
        """
        if language not in self.languages:
            raise ValueError(
                f"{language!r} is not in these means, which cover {', '.join(self.languages)}."
            )
        if len(self.languages) < 2:
            raise ValueError(
                f"These means have no language but {language}: a difference needs two."
            )
        n_layers = self.mean.shape[1]
        if not 0 <= layer < n_layers:
            raise ValueError(f"Layer {layer} does not exist: these means are of {n_layers} layers.")
        row = self.languages.index(language)
        others = [other for other in range(len(self.languages)) if other != row]
        rest = reduce(self.mean[others, layer], "language unit -> unit", "mean")
        chosen = torch.zeros(self.mean.shape[1:], dtype=torch.bool)
        chosen[layer] = True
        values = torch.zeros(self.mean.shape[1:])
        values[layer] = (self.mean[row, layer] - rest).float()
        name = f"{strength:g} towards {language} after layer {layer}"
        return {"resid_post": chosen}, push({"resid_post": values}, strength, name)


class _ResidualSums:
    """Sums the residual stream after every layer, over one language."""

    kinds: tuple[Kind, ...] = ("resid_post",)

    def __init__(self, model: NeuronModel) -> None:
        self.sums = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64)
        self.n_tokens = 0

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None:
        keep = batch.keep.to(values.device, torch.float32)
        total = einsum(values.float(), keep, "batch pos unit, batch pos -> unit")
        self.sums[layer] += total.double().cpu()
        if layer == 0:
            self.n_tokens += int(batch.keep.sum())


def residual_means(
    model: AnyModel, corpora: Corpora, tokens_per_batch: int = 8192, progress: bool = True
) -> ResidualMeans:
    """Means of all layers, from one pass over the text.

    >>> means = interp.interventions.residual_means(model, text, progress=False)
    >>> means.mean.shape
    torch.Size([3, 6, 256])
    >>> units, edit = means.towards("de", layer=3)
    >>> edit.name
    '1 towards de after layer 3'
    """
    model = as_model(model)
    means = []
    languages = tqdm(corpora.languages, desc="residual means", disable=not progress or None)
    for language in languages:
        sums = _ResidualSums(model)
        for shard in range(corpora.n_shards):
            for batch in batches(corpora, language, shard, tokens_per_batch):
                observe(model, batch, [sums])
        means.append(sums.sums / sums.n_tokens)
    return ResidualMeans(torch.stack(means), corpora.languages)
