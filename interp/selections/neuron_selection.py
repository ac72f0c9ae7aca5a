"""Which neurons belong to which language: a set for each, to compare, tabulate and save."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.inference.intervals import Estimate
from interp.interventions.edits import Change, Edit, Site
from interp.models.any_model import AnyModel, as_model
from interp.models.sites import hooked_at
from interp.models.units import Address, LayerUnits, UnitLayout
from interp.results.display import Cells, Shown, layer_cells, listed
from interp.results.words import Tokens, UnitKind
from interp.selections import formats, tables
from interp.selections.chance import SiteUnits, drawn_like, jaccard_by_chance

FORMAT = formats.FORMAT
"""The format line of a selection's JSON file."""

NEURON_SITES = ("pre", "pre_linear", "post")
"""Sites of the MLP's neurons: the gate's pre-activation, the linear branch, the output."""


@dataclass(frozen=True)
class NeuronSelection(Shown):
    """A set of neurons for each language, or of other units where several sites were searched.

    >>> neurons["zh"].shape, int(neurons.union().sum())
    (torch.Size([6, 2048]), 369)
    >>> neurons.random_like(generator).counts() == neurons.counts()
    True
    >>> neurons.to_json(folder / "neurons.json")
    >>> interp.NeuronSelection.from_json(folder / "neurons.json") == neurons
    True
    """

    mask: Bool[Tensor, "language layer neuron"]
    """True where the neuron belongs to the language; a neuron may belong to several. The last axis
    holds the units of all sites, concatenated."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    sites: tuple[tuple[str, int], ...] = ()
    """Kind and width of each site, in the order of the last axis; by default the MLP's neurons
    alone, at "post"."""

    pool: Bool[Tensor, "layer neuron"] | None = None
    """What the neurons were chosen from, and controls are drawn from; None: from all. In a mixture
    of experts, those that saw enough tokens (`FiringStats.seen`)."""

    layout: UnitLayout | None = None
    """In a mixture of experts, what a layer's neurons are: dense ones, then those of its experts
    (`model.layout`), so that lists and files say (layer, expert, neuron)."""

    neurons_of: str = ""
    """The model that the neurons were found in, if they are used in another (see `on`)."""

    def __post_init__(self) -> None:
        if not self.sites:
            object.__setattr__(self, "sites", (("post", self.mask.shape[2]),))
        if self.layout is not None:
            self._check_layout(self.layout)
        if self.pool is not None and (self.mask & ~self.pool).any():
            raise ValueError(
                f"{int((self.mask & ~self.pool).sum()):,} neurons of this selection are not among "
                "those that it was chosen from (`pool`): give a pool that holds all of them."
            )
        kinds = [kind for kind, _ in self.sites]
        if (
            sum(width for _, width in self.sites) != self.mask.shape[2]
            or len(set(kinds)) != len(kinds)
            or not set(kinds) <= set(get_args(UnitKind))
        ):
            raise ValueError(
                f"The sites are {self.sites}, but the mask has {self.mask.shape[2]} units per layer"
                f": give kind and width of each, none twice, of {', '.join(get_args(UnitKind))}."
            )
        if len(self.languages) != len(self.mask) or len(set(self.languages)) != len(self.mask):
            raise ValueError(
                f"The mask has {len(self.mask)} languages but the names are "
                f"{', '.join(self.languages) or 'none'}: give one name for each, none twice."
            )

    def __repr__(self) -> str:
        sizes = listed(f"{code} {size:,}" for code, size in self.counts().items())
        total, what = self.n_layers * self.n_units, "neurons"
        if self.layout is not None:
            total = int(self.layout.exists.sum())
        if not self.neurons_only:
            what = f"units ({', '.join(f'{kind} {width:,}' for kind, width in self.sites)})"
        return (
            f"NeuronSelection({sizes}; together {int(self.union().sum()):,} of {total:,} {what} "
            f"in {self.n_layers} layers)"
        )

    def _cells(self) -> Cells:
        names = [[code, f"{size:,}"] for code, size in self.counts().items()]
        note = "units of each layer" if not self.neurons_only else "neurons of each layer"
        return layer_cells(names, self.layer_profile().tolist(), note, ("", "all"))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NeuronSelection)
            and (self.languages, self.sites) == (other.languages, other.sites)
            and self.layout == other.layout
            and torch.equal(self.mask, other.mask)
        )

    def __getitem__(self, language: str) -> Bool[Tensor, "layer neuron"]:
        return self.mask[self._index(language)]

    def __and__(self, other: "NeuronSelection") -> "NeuronSelection":
        """For each language, the neurons in both selections."""
        return replace(self, mask=self.mask & self._mask_of(other))

    def __or__(self, other: "NeuronSelection") -> "NeuronSelection":
        """For each language, the neurons in either selection."""
        return replace(self, mask=self.mask | self._mask_of(other))

    def __sub__(self, other: "NeuronSelection") -> "NeuronSelection":
        """For each language, the neurons in this selection and not in the other."""
        return replace(self, mask=self.mask & ~self._mask_of(other))

    def __invert__(self) -> "NeuronSelection":
        """For each language, the neurons that do not belong to it."""
        return replace(self, mask=~self.mask if self.pool is None else ~self.mask & self.pool)

    @property
    def n_layers(self) -> int:
        return self.mask.shape[1]

    @property
    def n_units(self) -> int:
        """Neurons per layer (d_mlp); with other sites, units per layer, of all sites."""
        return self.mask.shape[2]

    @property
    def neurons_only(self) -> bool:
        """True if only the MLP's neurons were searched; their output is edited at act or post."""
        return self.sites == (("post", self.n_units),)

    def units(self, language: str) -> dict[Site, Bool[Tensor, "layer unit"]]:
        """The language's units at each site of the selection, in the form `intervene` takes."""
        kinds: list[Any] = [kind for kind, _ in self.sites]
        return dict(zip(kinds, self._split(self[language]), strict=True))

    def change(self, language: str, edit: Edit, tokens: Tokens = "all") -> Change:
        """A change that applies the edit to the language's units at every site of the selection.

        For a selection of neurons alone it applies at the site of the edit, which may be "act".
        """
        units = self[language] if self.neurons_only else self.units(language)
        return Change(units, edit, tokens)

    def neurons(self) -> "NeuronSelection":
        """The MLP's neurons alone: those selected at pre, pre_linear or post.

        This makes selections from different sites comparable.
        """
        parts = [
            part
            for (kind, _), part in zip(self.sites, self._split(self.mask), strict=True)
            if kind in NEURON_SITES
        ]
        if not parts:
            raise ValueError(
                f"This selection has units of {', '.join(kind for kind, _ in self.sites)}, but no "
                "neurons of the MLP: collect the site pre or post as well."
            )
        pool = self.pool if self.neurons_only else None
        return replace(self, mask=torch.stack(parts).any(dim=0), sites=(), pool=pool)

    def languages_only(self, languages: Sequence[str]) -> "NeuronSelection":
        """Some of the languages, in the order given."""
        rows = [self._index(language) for language in languages]
        return replace(self, mask=self.mask[rows], languages=tuple(languages))

    def counts(self) -> dict[str, int]:
        """Number of neurons per language."""
        sizes = self.layer_profile().sum(dim=1).tolist()
        return dict(zip(self.languages, sizes, strict=True))

    def languages_per_neuron(self) -> Int[Tensor, "layer neuron"]:
        """The number of languages that each neuron belongs to."""
        return reduce(self.mask.long(), "language layer neuron -> layer neuron", "sum")

    def union(self) -> Bool[Tensor, "layer neuron"]:
        """Neurons that belong to any language."""
        return self.shared(at_least=1)

    def shared(self, at_least: int = 2) -> Bool[Tensor, "layer neuron"]:
        """Neurons that belong to `at_least` languages or more."""
        return self.languages_per_neuron() >= at_least

    def layer_profile(self) -> Int[Tensor, "language layer"]:
        """Number of neurons per language and layer."""
        return reduce(self.mask.long(), "language layer neuron -> language layer", "sum")

    def overlap(self) -> Int[Tensor, "language language"]:
        """Number of neurons that two languages share; on the diagonal, neurons of the language."""
        common = torch.zeros(len(self.languages), len(self.languages), dtype=torch.float64)
        for layer in self.mask.unbind(dim=1):
            common += layer.double() @ layer.double().T
        return common.long()

    def jaccard(self) -> Float[Tensor, "language language"]:
        """Neurons shared by two languages, divided by their union.

        Zero: no shared neurons. One: the same neurons. NaN: neither language has any.
        """
        common = self.overlap().double()
        size = common.diagonal()
        return common / (
            rearrange(size, "language -> language 1")
            + rearrange(size, "language -> 1 language")
            - common
        )

    def layer_frame(self, interval: Estimate | None = None) -> pd.DataFrame:
        """One row per layer and language: columns layer, language, neurons, low, high.

        `interval`: [language layer], for example from `jackknife` of a function that selects and
        returns `layer_profile().double()`; without it low and high are blank. Intervals are cut
        off at zero, because counts cannot be negative.
        """
        return tables.by_layer(self.layer_profile(), self.languages, interval)

    def overlap_frame(self) -> pd.DataFrame:
        """One row per pair of languages, each with itself too: neurons in common, their Jaccard.

        Also the mean Jaccard of random neurons, as many per layer, and its 95 % interval; both are
        blank for a language with itself.
        """
        by_chance = [
            jaccard_by_chance(
                mask.expand_as(self.mask), self.mask, [width for _, width in self.sites]
            )
            for mask in self.mask
        ]
        return tables.by_pair(self.overlap(), self.jaccard(), by_chance, self.languages)

    def random_like(
        self,
        generator: torch.Generator,
        exclude: Bool[Tensor, "layer neuron"] | None = None,
        rate: Float[Tensor, "language layer neuron"] | None = None,
    ) -> "NeuronSelection":
        """A random control of the same size per language, layer and site.

        With `exclude`, it draws from the other neurons only: `exclude=selection.union()` avoids
        every selected neuron. With `rate`, such as `stats.rate`, each neuron is replaced by the one
        of its layer that fires nearly as often in that language, since language neurons fire about
        twice as often in their language as others. Neurons outside `pool` are never drawn.

        >>> alike = neurons.random_like(generator, exclude=neurons.union(), rate=stats.rate)
        >>> chosen, others = (stats.rate[x.mask].mean().item() for x in (neurons, alike))
        >>> abs(chosen - others) < 0.05
        True
        """
        excluded = torch.zeros_like(self.mask[0]) if exclude is None else exclude
        excluded = excluded if self.pool is None else excluded | ~self.pool
        if rate is not None and rate.shape != self.mask.shape:
            raise ValueError(
                f"The rates have shape {tuple(rate.shape)}, the selection "
                f"{tuple(self.mask.shape)}: give a rate for every unit and language of it."
            )
        rates = [None] * len(self.sites) if rate is None else self._split(rate)
        masks, free = self._split(self.mask), self._split(~excluded)
        sites = [
            SiteUnits("" if self.neurons_only else f" at {kind}", chosen, can_be, of_site)
            for (kind, _), chosen, can_be, of_site in zip(
                self.sites, masks, free, rates, strict=True
            )
        ]
        return replace(self, mask=drawn_like(sites, self.languages, generator))

    def check_model(self, model: AnyModel) -> None:
        """Raise ValueError if the model has a different size, before any wrong neuron is edited."""
        model = as_model(model)
        for name, width in self.sites:
            (kind,) = (known for known in get_args(UnitKind) if known == name)
            model.rows_site(0, hooked_at(kind))  # raises for a site that this model does not have
            model_width = model.width(0, kind)
            if (model.n_layers, model_width) != (self.n_layers, width):
                what = "neurons" if self.neurons_only else f"units at {kind}"
                raise ValueError(
                    f"This selection is for {self.n_layers} layers of {width} {what}, but "
                    f"{model.name} has {model.n_layers} of {model_width}: use the model it was "
                    "made with."
                )
        if self.layout is not None and self.layout != getattr(model, "layout", None):
            raise ValueError(
                f"This selection is for a mixture with other experts than those of {model.name}: "
                "use the model it was made with."
            )

    def on(self, model: AnyModel, found_in: str = "another model") -> "NeuronSelection":
        """The same neurons for another model of the same shape, such as an instruct model.

        These are the same only where one model was trained on from the other. `found_in` names the
        model that they were found in: every result says so in `neurons_of`.

        >>> neurons.on(model, "an earlier checkpoint").neurons_of
        'an earlier checkpoint'
        """
        model = as_model(model)
        self.check_model(model)
        return replace(self, neurons_of=found_in)

    def triples(self) -> list[tuple[int, int, int]]:
        """Sorted (index of the language, layer, neuron)."""
        return [(row, layer, neuron) for row, layer, neuron in self.mask.nonzero().tolist()]

    def addresses(self, language: str) -> list[Address]:
        """The (layer, expert, neuron) of the language's neurons; see `from_addresses`.

        >>> neurons.addresses("zh")[0]
        Address(layer=0, expert=None, neuron=...)
        """
        self.neurons()  # refuses other units
        of_dense = UnitLayout((LayerUnits(self.n_units, 0, 0),) * self.n_layers)
        return (self.layout or of_dense).addresses(self.neurons()[language])

    @staticmethod
    def from_addresses(
        addresses: Mapping[str, Iterable[Sequence[Any]]], layout: UnitLayout
    ) -> "NeuronSelection":
        """In a mixture of experts, each language's neurons, as (layer, expert, neuron).

        The expert of dense neurons is None. `layout` is that of the model.

        >>> layout = interp.models.UnitLayout.of([[160, 0, 0], [48, 4, 32]])
        >>> chosen = interp.NeuronSelection.from_addresses({"de": [(1, 3, 5)], "fr": []}, layout)
        >>> chosen.addresses("de")[0].name
        'L1E3N5'
        """
        mask = torch.stack([layout.mask(listed) for listed in addresses.values()])
        return NeuronSelection(mask, tuple(addresses), layout=layout)

    @staticmethod
    def from_triples(
        triples: Iterable[Sequence[int]],
        languages: Sequence[str],
        n_layers: int,
        n_units: int,
        sites: tuple[tuple[str, int], ...] = (),
        pool: Bool[Tensor, "layer neuron"] | None = None,
        layout: UnitLayout | None = None,
    ) -> "NeuronSelection":
        """The selection of these (index of the language, layer, neuron)."""
        mask = torch.zeros(len(languages), n_layers, n_units, dtype=torch.bool)
        for triple in triples:
            if len(triple) != 3 or not all(
                type(index) is int and 0 <= index < size
                for index, size in zip(triple, mask.shape, strict=True)
            ):
                raise ValueError(
                    f"{tuple(triple)} is not a (language, layer, neuron) of {len(languages)} "
                    f"languages, {n_layers} layers and {n_units} neurons per layer: give whole "
                    "numbers, counted from zero."
                )
            mask[tuple(triple)] = True
        return NeuronSelection(mask, tuple(languages), sites, pool, layout)

    def to_json(self, path: Path | str, provenance: dict[str, Any] | None = None) -> None:
        """Write a readable file: one line per language and layer, without empty layers.

        With several sites a line lists the units of each site, counted from zero at every site; in
        a mixture of experts each neuron is [expert, neuron], or [null, neuron] of dense ones.
        """
        selected = (self.mask, self.languages, self.sites, self.pool, self.layout)
        formats.write_json(path, *selected, provenance=provenance or {})

    @staticmethod
    def from_json(path: Path | str) -> "NeuronSelection":
        """Read a file in the format of `to_json`."""
        with formats.readable(path):
            return NeuronSelection.from_triples(*formats.read_json(path))

    def to_lape_pth(self, path: Path | str) -> None:
        """Write the published format (Tang et al., 2024): ids, per language and layer.

        The file records neither the names of the languages nor the number of neurons per layer, and
        it holds neurons of the MLP alone, of no experts.
        """
        kinds = [kind for kind, _ in self.sites]
        if len(kinds) != 1 or kinds[0] not in NEURON_SITES:
            raise ValueError(
                f"This selection has units of {', '.join(kinds)}, but the "
                "published format holds neurons of the MLP alone: export selection.neurons()."
            )
        formats.write_lape(path, self.mask, self.layout)

    @staticmethod
    def from_lape_pth(path: Path | str, languages: Sequence[str], d_mlp: int) -> "NeuronSelection":
        """Read the published format; `languages` names the file's languages, in its order.

        The authors' files hold en zh fr es vi id, and ja after them for LLaMA-2 7B and 13B only.
        """
        return NeuronSelection(formats.read_lape(path, languages, d_mlp), tuple(languages))

    def _split(self, units: Shaped[Tensor, "*axes unit"]) -> tuple[Shaped[Tensor, "*axes _"], ...]:
        """One part for each site."""
        return units.split([width for _, width in self.sites], dim=-1)

    def _check_layout(self, layout: UnitLayout) -> None:
        shape = (len(layout.layers), layout.d_mlp)
        if not self.neurons_only or tuple(self.mask.shape[1:]) != shape:
            raise ValueError(
                f"The layout is of {shape[0]} layers of {shape[1]} neurons, but the selection is "
                f"of {self.n_layers} of {self.n_units} at {self.sites}: give the model's layout."
            )
        if self.pool is None:
            object.__setattr__(self, "pool", layout.exists)

    def _index(self, language: str) -> int:
        if language not in self.languages:
            raise KeyError(
                f"{language!r} is not in this selection, which covers {', '.join(self.languages)}."
            )
        return self.languages.index(language)

    def _mask_of(self, other: "NeuronSelection") -> Bool[Tensor, "language layer neuron"]:
        if self.languages != other.languages or self.mask.shape != other.mask.shape:
            raise ValueError(
                f"One selection has {self.n_layers} layers of {self.n_units} neurons for "
                f"{', '.join(self.languages)}, the other {other.n_layers} of {other.n_units} for "
                f"{', '.join(other.languages)}: they must be of one model and have the same "
                "languages in the same order (see languages_only)."
            )
        if self.layout and other.layout and self.layout != other.layout:
            raise ValueError(
                "The selections are of mixtures with different experts: compare those of one model."
            )
        if self.sites != other.sites:
            raise ValueError(
                f"One selection has units of {self.sites}, the other of {other.sites}: compare "
                "their neurons, selection.neurons()."
            )
        return other.mask
