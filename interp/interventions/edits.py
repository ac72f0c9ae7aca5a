"""Edits of chosen units' activations, for the duration of a `with` block.

Every edit is the same small formula at one site of the model: a chosen unit's activation becomes

    factor · activation + shift.

Zero for both switches it off, a factor of zero and a shift set it to a constant, a factor of one
and a shift push it. A value is only written at the site where it was measured: a mean of act(gate)
never replaces the product of gate and linear branch.
"""

import importlib
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from interp.counting.sentence_means import SentenceMeans
from interp.counting.stats import ActivationMoments
from interp.interventions.row_edits import ReroutingEdit, RoutingEdit, RowEdit
from interp.interventions.unit_edits import UnitEdit
from interp.models.any_model import AnyModel, as_model
from interp.models.as_transformer_lens import Hook
from interp.models.mixture_model import ROW_KINDS, MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.models.sites import hooked_at
from interp.results import artifacts
from interp.results.words import Kind, Tokens, UnitKind
from interp.text.tokens import prompt_ids

Site = UnitKind | Literal["act", "rerouting"]
"""A hook point of the model, or "act": act(gate), before it is multiplied by the linear branch; or
"head": whole attention heads, whose outputs are at "z".

Units of "routing" and of "rerouting" are the experts of a mixture, and what is edited is the weight
with which an expert's output is added, on tokens that chose it. At "routing", what an expert loses
goes to none. At "rerouting" it goes to the token's other experts, in proportion to their weights,
so that the token's weights have the same sum; if no other is left, it goes to none.

q, k, v, pre and pre_linear are outputs of linear layers, bias included, before any norm or
rotation. z is the heads' outputs, before attention's output projection. attn_out and mlp_out are
what is added to the residual stream: the result of the output projection, on Gemma-2 and 3 after
one more norm.
"""

Values = Float[Tensor, "layer unit"]
"""One number per unit of a site; only those of chosen units are used."""

Units = Bool[Tensor, "layer unit"] | Mapping[Site, Bool[Tensor, "layer unit"]]
"""Masks of chosen units, at one site or at each of several. Heads are concatenated."""


@dataclass(frozen=True)
class Edit:
    """Sets chosen units to `factor` times their activation, plus `shift`.

    >>> interp.Edit("halve", factor=0.5)
    Edit('halve', factor 0.5)
    """

    name: str
    """Short description, for tables and cards."""

    factor: float = 1.0
    """Zero: the activation is discarded. One: it is kept."""

    shift: Mapping[Site, Values] = field(default_factory=dict)
    """Added at each site; nothing is added at sites that are missing."""

    site: Site = "post"
    """Site of the units, if they are given as a single mask."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor):
            raise ValueError(f"{self.name}: the factor is {self.factor}; give a finite number.")

    def __repr__(self) -> str:
        shift = f", shift at {', '.join(self.shift)}" if self.shift else ""
        return f"Edit({self.name!r}, factor {self.factor:g}{shift})"


deactivate = Edit("deactivate", factor=0.0)
"""Sets chosen units to zero: switches them off."""


def scale(factor: float) -> Edit:
    """Multiplies chosen units by `factor`. One: nothing changes. Zero: off.

    >>> interp.scale(2.0)
    Edit('scale by 2', factor 2)
    """
    return Edit(f"scale by {factor:g}", factor=factor)


def override(values: Values | Mapping[Site, Values], site: Site = "post") -> Edit:
    """Sets chosen units to constants that were measured at `site` (Kojima et al., 2024).

    A mapping gives the constants of several sites, as `sentence_medians` does; `site` then has no
    effect.

    >>> interp.override(torch.full((6, 2048), 0.1))
    Edit('override', factor 0, shift at post)
    """
    shift: dict[Site, Values] = _by_site(values, site)
    sites: list[Site] = [*shift, site]
    return Edit("override", 0.0, shift, sites[0])


def replace(moments: ActivationMoments, language: str, site: Site = "act") -> Edit:
    """Sets chosen neurons to their mean over the language's tokens, on any input.

    At "act" only the gate is held: the neuron's output still follows its linear branch.

    >>> interp.replace(moments, "de")
    Edit('replace with de', factor 0, shift at act)
    """
    return Edit(
        f"replace with {language}", 0.0, {site: language_mean(moments, language, site)}, site
    )


def add(
    moments: ActivationMoments, language: str, strength: float = 1.0, site: Site = "act"
) -> Edit:
    """Adds to chosen neurons `strength` times their mean in the language.

    >>> interp.add(moments, "de", strength=0.5)
    Edit('add 0.5 de', factor 1, shift at act)
    """
    mean = language_mean(moments, language, site)
    return push({site: mean}, strength, f"add {strength:g} {language}")


def difference_of_means(
    moments: ActivationMoments, language: str, strength: float = 1.0, site: Site = "act"
) -> Edit:
    """As `add`, with the mean in the language minus the mean of the other languages' means.

    >>> interp.difference_of_means(moments, "de", strength=2.0)
    Edit('2 towards de', factor 1, shift at act)
    """
    own = language_mean(moments, language, site)
    others = [code for code in moments.languages if code != language]
    if not others:
        raise ValueError(f"These moments have no language but {language}: a difference needs two.")
    rest = torch.stack([language_mean(moments, code, site) for code in others]).mean(dim=0)
    return push({site: own - rest}, strength, f"{strength:g} towards {language}")


def push(values: Mapping[Site, Values], strength: float = 1.0, name: str = "push") -> Edit:
    """Adds to chosen units `strength` times these values, at any site.

    >>> interp.push({"resid_post": torch.ones(6, 256)}, strength=0.1)
    Edit('push', factor 1, shift at resid_post)
    """
    if not math.isfinite(strength):
        raise ValueError(f"{name}: the strength is {strength}; give a finite number.")
    shift: dict[Site, Values] = {site: strength * value for site, value in values.items()}
    sites: list[Site] = [*shift, "post"]
    return Edit(name, 1.0, shift, sites[0])


def language_mean(
    moments: ActivationMoments, language: str, site: Site = "act"
) -> Float[Tensor, "layer neuron"]:
    """Mean over a language's tokens of act(gate) ("act"), or of the neuron's output ("post")."""
    if language not in moments.languages:
        raise ValueError(
            f"{language!r} is not in these moments, which cover {', '.join(moments.languages)}."
        )
    if site not in ("act", "post"):
        raise ValueError(f"Moments are measured at act and post, not at {site!r}.")
    means = moments.gate_mean if site == "act" else moments.output_mean
    return means[moments.languages.index(language)].float()


def sentence_medians(means: SentenceMeans, language: str) -> dict[Site, Values]:
    """Median over the language's sentences of each unit's mean over a sentence, at every site.

    Kojima et al. (2024) override units with these. For an even number of sentences, the mean of
    the middle two.

    >>> interp.override(interp.interventions.sentence_medians(means, "de"))
    Edit('override', factor 0, shift at pre)
    """
    if language not in means.languages:
        raise ValueError(
            f"{language!r} is not in these means, which cover {', '.join(means.languages)}."
        )
    in_language = means.labels == means.languages.index(language)
    if not in_language.any():
        raise ValueError(f"There is no sentence in {language} among these means.")
    return {
        kind: torch.stack(
            [_median(means.read(kind, layer)[in_language]) for layer in range(means.n_layers)]
        )
        for kind in means.kinds
    }


def _median(values: Tensor) -> Tensor:
    """Median of each column; `torch.quantile` takes at most 16 million numbers."""
    ordered, n = values.sort(dim=0).values, len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


@dataclass(frozen=True, eq=False)
class Change:
    """An edit of chosen units at chosen tokens, as data to send, store and compare.

    >>> off = neurons.change("de", interp.deactivate)
    >>> off.plan["edit"]["name"]
    'deactivate'
    >>> with model.hooks(fwd_hooks=off.hooks(model)):
    ...     print(model.logits(torch.tensor([model.encode("Guten Morgen")])).shape)
    torch.Size([1, 3, 16384])
    """

    units: Units
    """One mask at `edit.site`, or a mask for each of several sites."""

    edit: Edit
    """What is done to them."""

    tokens: Tokens = "all"
    """Tokens to edit; anything but "all" works only in passes of what `load` or `wrap` gives, as a
    bare model of TransformerLens does not say which tokens are the prompt."""

    @property
    def masks(self) -> dict[Site, Bool[Tensor, "layer unit"]]:
        """The chosen units of each site that has any."""
        masks = _by_site(self.units, self.edit.site)
        return {site: mask for site, mask in masks.items() if mask.any()}

    @property
    def n_units(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def plan(self) -> dict[str, Any]:
        """Everything it changes, as JSON: masks and values by their hashes."""
        edit = {"name": self.edit.name, "factor": self.edit.factor}
        shift = {site: artifacts.hash_of(values) for site, values in self.edit.shift.items()}
        units = {
            site: artifacts.hash_of(mask)
            for site, mask in _by_site(self.units, self.edit.site).items()
        }
        return {"units": units, "edit": edit | {"shift": shift}, "tokens": self.tokens}

    def check(self, model: AnyModel) -> None:
        """Refuse a change that does not fit the model, before anything is run."""
        model = as_model(model)
        if self.tokens not in get_args(Tokens):
            raise ValueError(
                f"tokens is one of {', '.join(get_args(Tokens))}, not {self.tokens!r}."
            )
        masks, edit = self.masks, self.edit
        if not masks:
            raise ValueError(f"{edit.name}: no unit is chosen, so there is nothing to change.")
        if missing := [site for site in masks if edit.shift and site not in edit.shift]:
            raise ValueError(
                f"{edit.name} has values for {', '.join(edit.shift)} only, and units of "
                f"{', '.join(missing)} are chosen: measure and write at one site."
            )
        if "head" in edit.shift:
            raise ValueError(
                f"{edit.name} has values for whole heads, which can be switched off or scaled: "
                "give values for the numbers of their outputs, at z."
            )
        if isinstance(model, MixtureModel) and "act" in edit.shift:
            raise ValueError(
                f"{edit.name} has values for act, and {model.name} is a mixture of experts, where "
                "values are written at pre, pre_linear and post alone."
            )
        for site, mask in masks.items():
            _check_shape(model, site, mask, "the mask")
            if mask.dtype != torch.bool:
                raise ValueError(
                    f"the mask at {site} holds {mask.dtype}: give torch.bool, True for a chosen "
                    "unit."
                )
            if site in edit.shift:
                _check_shape(model, site, edit.shift[site], f"the values of {edit.name!r}")
                unknown = mask.cpu() & ~edit.shift[site].cpu().isfinite()
                if unknown.any():
                    layer, unit = unknown.nonzero()[0].tolist()
                    named = f"unit {unit} in layer {layer}"
                    if isinstance(model, MixtureModel) and site != "routing" and site in ROW_KINDS:
                        named = str(model.layout.address(layer, unit))
                    raise ValueError(
                        f"{edit.name}: the value at {site} of {named} is "
                        f"{edit.shift[site][layer, unit]}. Was it a mean over no tokens, or over "
                        "fewer than 100 of an expert?"
                    )

    def to_lora(
        self, model: AnyModel, folder: Path | str, largest_rank: int = 512, note: str = ""
    ) -> Path:
        """Save the change as a LoRA adapter in a new folder, and return the folder.

        PEFT loads it beside the base model, where it gives the logits of the hooks; so does vLLM
        if no bias is edited. A matrix needs a rank of as many units as are edited there, at most
        `largest_rank`. Constants need a bias in the checkpoint; for others, `interp.bake`. `note`
        goes on the card.

        >>> german = neurons.change("de", interp.deactivate)
        >>> sorted(path.name for path in german.to_lora(model, folder / "german-off").iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'interp_bake.json']
        """
        model = as_model(model)
        writer = importlib.import_module("interp.interventions.adapter")  # which imports this file
        return writer.write_adapter(self, model, folder, largest_rank, note)

    def to_control_vector(self, model: AnyModel, file: Path | str) -> Path:
        """Save a push as a control vector (.gguf) for llama.cpp and repeng, and return the file.

        It adds to the residual stream after each layer but the first, at every position.
        """
        model = as_model(model)
        writer = importlib.import_module("interp.interventions.control_vector")
        return writer.write_control_vector(self, model, file)

    def hooks(self, model: AnyModel) -> list[tuple[str, Hook]]:
        """Hook names and functions for TransformerLens, one for each site and layer with chosen
        units."""
        model = as_model(model)
        self.check(model)
        hooks: list[tuple[str, Hook]] = []
        masks = by_hook(model, self.masks)
        # At a shared hook point, in the order of the computation: linear branch, act, product.
        for site in sorted(masks, key=lambda site: {"act": 1, "post": 2}.get(site, 0)):
            for layer in masks[site].any(dim=1).nonzero().flatten().tolist():
                name, mask = model.rows_site(layer, _kind(site)), masks[site][layer]
                shift = self.edit.shift[site][layer] if site in self.edit.shift else None
                if isinstance(model, MixtureModel) and _kind(site) in ROW_KINDS:
                    cls = {"routing": RoutingEdit, "rerouting": ReroutingEdit}.get(site, RowEdit)
                    hooks.append((name, cls(model, self.edit.factor, shift, mask, self.tokens)))
                    continue
                hook = UnitEdit(
                    model, layer, self.edit.factor, shift, mask, self.tokens, site == "act"
                )
                if hook.times_linear:
                    hooks.append((model.site(layer, "pre_linear"), hook.keep_linear))
                hooks.append((name, hook))
        return hooks


@contextmanager
def intervene(
    model: AnyModel,
    units: Units,
    edit: Edit,
    tokens: Tokens = "all",
    check: str | None = None,
) -> Iterator[None]:
    """Apply one change for the duration of a `with` block; on exit, even on error, it is removed.

    Blocks nest: the inner edit changes the result of the outer one. One exception: at "act",
    `replace` and `add` multiply by the linear branch as this block reads it, so edit `pre_linear`
    in an outer block, not in an inner one.

    With `check`, that prompt's logits are computed with and without the edit, and a warning says
    so if they are equal. Costs two forward passes.

    >>> ids = torch.tensor([model.encode("Guten Morgen")])
    >>> before = model.logits(ids)
    >>> with interp.intervene(model, neurons["de"], interp.deactivate):
    ...     print(torch.equal(model.logits(ids), before))
    False
    >>> torch.equal(model.logits(ids), before)
    True
    """
    model = as_model(model)
    change = Change(units, edit, tokens)
    hooks = change.hooks(model)
    if check is not None and not _changes_logits(model, change, check):
        warnings.warn(
            f"{edit.name} on {change.n_units} units changes nothing on {check!r}: they have these "
            f"values already, or their hooks do not fire (run `interp doctor {model.name}`).",
            stacklevel=3,  # the line of the with statement
        )
    with model.hooks(hooks):
        yield


def _by_site(given: Any, site: Site) -> dict[Site, Any]:
    """The tensor of each site, from one tensor or from a mapping."""
    return dict(given) if isinstance(given, Mapping) else {site: given}


def _check_shape(model: NeuronModel, site: Site, given: Tensor, what: str) -> None:
    kind = _kind(site)
    model.rows_site(0, kind)  # refuses a site that this model does not have
    expected = (model.n_layers, model.width(0, "head" if site == "head" else kind))
    if tuple(given.shape) != expected:
        raise ValueError(
            f"{what} at {site} has shape {tuple(given.shape)}, but {model.name} has {expected[0]} "
            f"layers of {expected[1]} units there: use the model it was made with."
        )


def by_hook(
    model: NeuronModel, masks: Mapping[Site, Bool[Tensor, "layer _"]]
) -> dict[Site, Bool[Tensor, "layer _"]]:
    """The same masks, with whole heads as the numbers of their outputs, at "z"."""
    spelled: dict[Site, Tensor] = {site: mask for site, mask in masks.items() if site != "head"}
    if "head" in masks:
        d_head = model.width(0, "z") // model.width(0, "head")
        numbers = repeat(masks["head"], "layer head -> layer (head unit)", unit=d_head)
        spelled["z"] = numbers | spelled["z"] if "z" in spelled else numbers
    return spelled


def _kind(site: Site) -> Kind:
    """Where a site is edited: act(gate) has no hook point of its own, so the product is edited."""
    if site == "rerouting":
        return "routing"
    return "post" if site == "act" else hooked_at(site)


@torch.no_grad()
def _changes_logits(model: NeuronModel, change: Change, prompt: str) -> bool:
    """Whether the change alters any logit of the prompt."""
    ids = torch.tensor([prompt_ids(model, prompt)])
    before = model.logits(ids)
    # A prompt has no generated tokens; editing all of them shows whether hooks fire.
    tokens: Tokens = "all" if change.tokens == "generated" else change.tokens
    with model.hooks(Change(change.units, change.edit, tokens).hooks(model)):
        return not torch.equal(before, model.logits(ids))
