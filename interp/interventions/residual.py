"""Steering by the residual stream's means in languages: a push by their difference, or chosen
dimensions overwritten."""

from dataclasses import dataclass

import torch
from einops import reduce
from jaxtyping import Bool, Float64
from torch import Tensor

from interp.counting.counters import UnitMomentsCounter
from interp.counting.observe import batches, observe
from interp.interventions.edits import Edit, Site, push
from interp.models.any_model import AnyModel, as_model
from interp.results.bars import tqdm
from interp.results.display import Cells, Shown, layer_cells, listed
from interp.text.corpora import Corpora


@dataclass(frozen=True, eq=False)
class ResidualMeans(Shown):
    """Means of the residual stream over the tokens of each language, after each layer.

    >>> interp.interventions.residual_means(model, text, progress=False)
    ResidualMeans(en, de, zh; 6 layers of 256 units)
    """

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
        row = self._row(language, layer)
        if len(self.languages) < 2:
            raise ValueError(
                f"These means have no language but {language}: a difference needs two."
            )
        others = [other for other in range(len(self.languages)) if other != row]
        rest = reduce(self.mean[others, layer], "language unit -> unit", "mean")
        chosen = torch.zeros(self.mean.shape[1:], dtype=torch.bool)
        chosen[layer] = True
        values = torch.zeros(self.mean.shape[1:])
        values[layer] = (self.mean[row, layer] - rest).float()
        name = f"{strength:g} towards {language} after layer {layer}"
        return {"resid_post": chosen}, push({"resid_post": values}, strength, name)

    def overwriting(
        self,
        language: str,
        dimensions: Bool[Tensor, "layer unit"],
        layer: int,
        strength: float = 0.4,
    ) -> tuple[dict[Site, Bool[Tensor, "layer unit"]], Edit]:
        """Units and edit for `intervene`: in one layer, chosen dimensions are set to `strength`
        times their mean in the language after the last layer (Zhong et al., 2025, arXiv
        2510.07213, who use 0.4 in layer 18 of 32 of LLaMA-2 7B).

        `dimensions` may be of any layers, such as a selection's of `interp find --method
        dimensions`: their indices count.

        >>> run = interp.collect(model, text, keep=interp.Keep(dimensions=True), progress=False)
        >>> chosen = interp.selections.select(run, "dimensions", n=20)
        >>> kept = run.dimensions
        >>> means = interp.interventions.ResidualMeans(kept.mean, kept.languages)
        >>> units, edit = means.overwriting("de", chosen["de"], layer=3)
        >>> int(units["resid_post"].sum()), edit.name
        (20, '0.4 of de after layer 3')
        """
        row = self._row(language, layer)
        if dimensions.shape[1] != self.mean.shape[2]:
            raise ValueError(
                f"The mask is of {dimensions.shape[1]:,} dimensions, and these means of "
                f"{self.mean.shape[2]:,}: both must be of one model."
            )
        chosen = torch.zeros(self.mean.shape[1:], dtype=torch.bool)
        chosen[layer] = reduce(dimensions, "layer unit -> unit", "any")
        values = torch.zeros(self.mean.shape[1:])
        values[layer] = strength * self.mean[row, -1].float()
        name = f"{strength:g} of {language} after layer {layer}"
        return {"resid_post": chosen}, Edit(name, 0.0, {"resid_post": values})

    def _row(self, language: str, layer: int) -> int:
        """The index of a language, after a check that there are means of it and of the layer."""
        if language not in self.languages:
            raise ValueError(
                f"{language!r} is not in these means, which cover {', '.join(self.languages)}."
            )
        n_layers = self.mean.shape[1]
        if not 0 <= layer < n_layers:
            raise ValueError(f"Layer {layer} does not exist: these means are of {n_layers} layers.")
        return self.languages.index(language)


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
        counter = UnitMomentsCounter(model, "resid_post")
        for shard in range(corpora.n_shards):
            for batch in batches(corpora, language, shard, tokens_per_batch):
                observe(model, batch, [counter])
        counted = counter.tensors()
        means.append(counted["resid_post.sums"][0] / counted["resid_post.tokens"])
    return ResidualMeans(torch.stack(means), corpora.languages)
