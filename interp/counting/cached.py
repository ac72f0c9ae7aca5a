"""A cache of activations with its mask, and all that can be wrong with the two."""

import re
from collections.abc import Iterable
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from interp.counting.batch import Batch, Neurons, Observer, by_unit
from interp.models.sites import HOOKS, hook_name, hooked_at, is_routed
from interp.results.display import counted
from interp.results.words import Kind, UnitKind

_GRADIENT = "_grad"
"""What TransformerLens appends to a hook's name for the gradient there."""

_IN_A_LAYER = re.compile(r"blocks\.(\d+)\.")


@runtime_checkable
class Cache(Protocol):
    """Activations by hook name: an ActivationCache of TransformerLens, or a dict."""

    def keys(self) -> Iterable[Any]: ...

    def __getitem__(self, name: str, /) -> Tensor: ...


Mask = Bool[Tensor, "batch pos"] | Int[Tensor, "batch pos"]
"""Which positions of a cache count, such as an attention mask."""


class Gradients:
    """The gradients in a backward cache, under the names of what they are gradients of."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.model = getattr(cache, "model", None)  # as an ActivationCache has it
        if not self.keys():
            raise ValueError(
                "The cache holds no gradients: call run_with_cache with incl_bwd=True, and with "
                'return_type="loss" or another number to follow back.'
            )

    def keys(self) -> list[str]:
        names = (name for name in self._cache.keys() if isinstance(name, str))  # noqa: SIM118
        return [name.removesuffix(_GRADIENT) for name in names if name.endswith(_GRADIENT)]

    def __getitem__(self, name: str, /) -> Tensor:
        return self._cache[name + _GRADIENT]


class Cached:
    """A cache with its mask, and what it tells of the model that made it, as `Neurons`."""

    def __init__(
        self,
        cache: Cache,
        keep: Tensor | None = None,
        label: str = "The cache",
        model: Neurons | None = None,
    ) -> None:
        self._cache, self._keep, self.label, self._model = cache, keep, label, model
        self._names = {name for name in cache.keys() if isinstance(name, str)}  # noqa: SIM118
        maker = getattr(cache, "model", None)  # in an ActivationCache
        if any(map(is_routed, getattr(maker, "modules", list)())):
            raise ValueError(
                f"{label} is of a mixture of experts, where TransformerLens calls the input of an "
                "MLP hook_pre: count its firing with interp.collect."
            )
        made_by = getattr(maker, "cfg", None)
        self.made_by: str | None = getattr(made_by, "model_name", None)
        self.n_layers = 1 + max(
            (int(match[1]) for match in map(_IN_A_LAYER.match, self._names) if match), default=-1
        )
        if model is not None:
            self._check_model(model)

    @property
    def name(self) -> str:
        return self.made_by or "The model of the cache"

    @property
    def d_mlp(self) -> int:
        """Neurons per layer; 0: the cache holds none."""
        if self.holds(0, "pre"):
            return self.width(0, "pre")
        return self.width(0, "post") if self.holds(0, "post") else 0

    @property
    def gated(self) -> bool:
        if self._model is not None:
            return self._model.gated
        return hook_name(0, "pre_linear") in self._names

    @property
    def dtype(self) -> torch.dtype:
        return self._any(0).dtype

    def layer_device(self, layer: int) -> torch.device:
        return self._any(layer).device

    def width(self, layer: int, kind: UnitKind) -> int:
        site = hooked_at(kind)
        if kind == site:
            return self.values(layer, site).shape[-1]
        if self._model is not None:
            return self._model.width(layer, kind)
        values = self._cache[hook_name(layer, site)]
        if values.ndim != 4:
            raise ValueError(
                f"{self.label} holds {hook_name(layer, site)} without an axis of heads, so their "
                "number is unknown: give the model too, with model=."
            )
        return values.shape[2]

    def act(
        self, layer: int, pre: Float[Tensor, "*batch neuron"]
    ) -> Float[Tensor, "*batch neuron"]:
        if self._model is None:
            raise ValueError(
                f"{self.label} does not know its activation function: give the model too, with "
                "model=."
            )
        return self._model.act(layer, pre)

    def n_positions(self, kind: Kind) -> int:
        return self.values(0, kind).shape[1]

    def values(self, layer: int, kind: Kind) -> Float[Tensor, "batch pos unit"]:
        name = hook_name(layer, kind)
        if name not in self._names:
            raise ValueError(self._lacks(name, (kind,)))
        values = self._cache[name]
        if values.ndim not in (3, 4):
            raise ValueError(
                f"{self.label} holds {name} as {list(values.shape)}, but [batch pos unit] is "
                "needed: call run_with_cache with remove_batch_dim=False and no pos_slice that "
                "removes an axis."
            )
        return by_unit(values)

    def holds(self, layer: int, kind: Kind) -> bool:
        return hook_name(layer, kind) in self._names

    def batch(self, kinds: tuple[Kind, ...], pos: int | None = None) -> Batch:
        """All rows of the cache, after a check that it holds these sites in every layer.

        Rows end at their last token that counts, or at the one with the number `pos`.
        """
        n_rows, n_positions = self._check_sites(kinds)
        keep = torch.ones(n_rows, n_positions, dtype=torch.bool)
        if self._keep is not None:
            keep = self._check_mask(n_rows, n_positions)
        length = n_positions - keep.flip(1).int().argmax(dim=1)
        if pos is not None:
            length = self._position(keep, pos) + 1
        return Batch(
            rows=tuple(range(n_rows)),
            ids=torch.zeros((), dtype=torch.long).expand(n_rows, n_positions),  # they are unknown
            keep=keep,
            length=length,
            sources=(self.label,) * n_rows,
            whole=bool(keep.all()),
        )

    @torch.no_grad()
    def replay(self, observer: Observer, batch: Batch) -> None:
        """Pass each layer to the observer, as `observe` does while a model runs."""
        for layer in range(self.n_layers):
            for kind in observer.kinds:
                site = hooked_at(kind)
                here = batch.to(self.values(layer, site).device)
                values = self._finite(layer, site, here)
                values = self.act(layer, values) if kind == "act" else values
                observer.update(kind, layer, values, here)

    def check_like(self, other: "Cached", kinds: tuple[Kind, ...]) -> None:
        """Refuse caches of two models."""
        if self.made_by and other.made_by and self.made_by != other.made_by:
            raise ValueError(
                f"{other.label} was made by {other.made_by} and {_lower(self.label)} by "
                f"{self.made_by}: statistics are of one model."
            )
        for kind in kinds:
            sizes = [(cached.n_layers, cached.width(0, kind)) for cached in (other, self)]
            if sizes[0] != sizes[1]:
                (n_layers, width), (n_here, width_here) = sizes
                raise ValueError(
                    f"{other.label} has {n_layers} layers of {width:,} units at {kind} and "
                    f"{_lower(self.label)} {n_here} of {width_here:,}: statistics are of one model."
                )

    # ------------------------------------------------------------ checks

    def _any(self, layer: int) -> Tensor:
        """Some tensor of a layer, for its device and type."""
        names = [hook_name(layer, kind) for kind in get_args(Kind)]
        held = [name for name in names if name in self._names]
        if not held:
            raise ValueError(self._lacks(names[0], ("pre",)))
        return self._cache[held[0]]

    def _lacks(self, name: str, kinds: tuple[Kind, ...]) -> str:
        ends = [HOOKS[kind] for kind in kinds]
        wanted = f'"{ends[0]}"' if len(ends) == 1 else str(tuple(ends)).replace("'", '"')
        why = ""
        if "pre" in kinds and name.endswith("hook_pre") and hook_name(0, "post") in self._names:
            why = (
                ", and hook_post does not replace it, since in a gated MLP its sign is not that of "
                "the gate"
            )
        return (
            f"{self.label} lacks {name}{why}: call run_with_cache with "
            f"names_filter=lambda name: name.endswith({wanted}), or with no filter."
        )

    def _check_model(self, model: Neurons) -> None:
        name = getattr(getattr(getattr(model, "bridge", None), "cfg", None), "model_name", None)
        if name and self.made_by and name != self.made_by:
            raise ValueError(f"{self.label} was made by {self.made_by}, and the model is {name}.")
        if self.n_layers != model.n_layers:
            raise ValueError(
                f"{self.label} has {counted(self.n_layers, 'layer')} and {model.name} "
                f"{model.n_layers}: it was made by another model, or without some of the layers."
            )

    def _check_sites(self, kinds: tuple[Kind, ...]) -> tuple[int, int]:
        """Number of rows and of positions, the same at every site."""
        sizes: dict[tuple[int, int], str] = {}
        for kind in kinds:
            names = [hook_name(layer, kind) for layer in range(max(1, self.n_layers))]
            if missing := [name for name in names if name not in self._names]:
                raise ValueError(self._lacks(missing[0], kinds))
            for layer, name in enumerate(names):
                n_rows, n_positions, width = self.values(layer, kind).shape
                sizes.setdefault((n_rows, n_positions), name)
                wanted = self._wanted_width(layer, kind)
                if width != wanted:
                    owner = "layer 0" if self._model is None else self._model.name
                    raise ValueError(
                        f"{self.label} has {width:,} units at {name}, and {owner} has {wanted:,} "
                        "there: it was made by another model."
                    )
        if len(sizes) > 1:
            shapes = " and ".join(f"{size} at {name}" for size, name in sizes.items())
            raise ValueError(
                f"{self.label} has rows and positions {shapes}: a cache is of one forward pass."
            )
        return next(iter(sizes))

    def _check_mask(self, n_rows: int, n_positions: int) -> Bool[Tensor, "batch pos"]:
        assert self._keep is not None
        keep = self._keep.detach().cpu()
        if keep.shape != (n_rows, n_positions):
            raise ValueError(
                f"{self.label} has {counted(n_rows, 'row')} of {counted(n_positions, 'position')} "
                f"and its mask has shape {list(keep.shape)}: give one number for each position."
            )
        if not ((keep == 0) | (keep == 1)).all():
            raise ValueError(
                f"The mask of {_lower(self.label)} holds {keep[(keep != 0) & (keep != 1)][0]}, but "
                "1 (True) means that a position counts and 0 (False) that it does not: give an "
                "attention mask, not token ids."
            )
        return keep.bool()

    def _position(self, keep: Bool[Tensor, "batch pos"], pos: int) -> Int64[Tensor, " batch"]:
        """Where each row's token number `pos` is, among those that count."""
        n_tokens = keep.sum(dim=1)
        number = torch.full_like(n_tokens, pos) if pos >= 0 else n_tokens + pos
        short = (number < 0) | (number >= n_tokens)
        if short.any():
            row = int(short.nonzero()[0])
            raise ValueError(
                f"{self.label} has no token {pos} in row {row}, where "
                f"{counted(int(n_tokens[row]), 'token')} count: give another position or mask."
            )
        # The first position by which `number` + 1 tokens have been seen.
        seen = keep.cumsum(dim=1) > rearrange(number, "batch -> batch 1")
        return seen.int().argmax(dim=1)

    def _wanted_width(self, layer: int, kind: Kind) -> int:
        return self.width(0, kind) if self._model is None else self._model.width(layer, kind)

    def _finite(self, layer: int, kind: Kind, batch: Batch) -> Float[Tensor, "batch pos unit"]:
        """The values of a site; zero on padding if they are NaN or infinite there."""
        values = self.values(layer, kind)
        if values.sum(dtype=torch.float32).isfinite():
            return values
        bad = ~values.isfinite().all(dim=2) & batch.keep
        if bad.any():
            raise ValueError(
                f"{self.label} has a NaN or infinite activation in {hook_name(layer, kind)}, row "
                f"{int(bad.any(dim=1).nonzero()[0])}: the model's weights may be damaged, or "
                f"{values.dtype} too narrow, so load it with dtype=torch.float32 or bfloat16."
            )
        return values.masked_fill(rearrange(~batch.keep, "batch pos -> batch pos 1"), 0)


def _lower(label: str) -> str:
    return label[0].lower() + label[1:]
