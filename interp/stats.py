"""What a pass over text leaves behind: sums, small enough to keep and exact enough to prove."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from safetensors import safe_open
from torch import Tensor

from interp import artifacts
from interp.activations import Batch
from interp.model import Kind, NeuronModel

Source = Literal["gate", "output"]
"""By what a neuron fires on a prompt. "gate": its pre-activation, whose sign says whether it is
open. "output": what it hands on, act(gate), times the linear branch where there is one; there the
sign of the linear branch decides too. Without one both have the same sign."""


@dataclass(frozen=True)
class FiringStats:
    """How often each neuron fires in each language, kept per shard of documents.

    >>> stats.languages, stats.tokens.sum(0).tolist()
    (('en', 'de', 'zh'), [640, 640, 640])
    >>> stats.rate.shape
    torch.Size([3, 6, 2048])
    >>> stats.without(0).n_shards
    4
    """

    fired: Int64[Tensor, "shard language layer neuron"]
    """Tokens on which the neuron's gate is above zero."""

    tokens: Int64[Tensor, "shard language"]
    """Tokens read."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    def __post_init__(self) -> None:
        n_shards, n_languages = self.fired.shape[:2]
        if self.tokens.shape != (n_shards, n_languages) or len(self.languages) != n_languages:
            raise ValueError(
                f"fired has {n_shards} shards and {n_languages} languages, tokens has shape "
                f"{tuple(self.tokens.shape)}, and {len(self.languages)} languages are named."
            )
        silent = [
            code
            for code, seen in zip(self.languages, self.tokens.sum(0).tolist(), strict=True)
            if seen == 0
        ]
        if silent:
            raise ValueError(f"No token was read in {', '.join(silent)}: rates are undefined.")
        most = rearrange(self.tokens, "shard language -> shard language 1 1")
        if (self.fired < 0).any() or (self.fired > most).any():
            raise ValueError("A neuron fires on fewer than zero or on more tokens than were read.")

    @property
    def n_shards(self) -> int:
        return self.fired.shape[0]

    @property
    def rate(self) -> Float64[Tensor, "language layer neuron"]:
        """Share of a language's tokens on which the neuron fires, in float64."""
        fired = reduce(self.fired, "shard language layer neuron -> language layer neuron", "sum")
        tokens = rearrange(self.tokens.sum(0), "language -> language 1 1")
        return fired.double().div_(tokens.double())

    def subset(self, shards: list[int]) -> "FiringStats":
        """The same statistics from some of the shards."""
        return FiringStats(self.fired[shards], self.tokens[shards], self.languages)

    def without(self, shard: int) -> "FiringStats":
        """Leave one shard out, as a delete-one jackknife does."""
        return self.subset([each for each in range(self.n_shards) if each != shard])

    def merge(self, other: "FiringStats") -> "FiringStats":
        """Both sets of shards; the texts must be different, or tokens count twice."""
        if self.languages != other.languages or self.fired.shape[2:] != other.fired.shape[2:]:
            raise ValueError(
                f"Cannot merge {tuple(self.fired.shape[2:])} neurons of {', '.join(self.languages)}"
                f" with {tuple(other.fired.shape[2:])} of {', '.join(other.languages)}: both runs "
                "must use one model and the same languages in the same order."
            )
        return FiringStats(
            torch.cat([self.fired, other.fired]),
            torch.cat([self.tokens, other.tokens]),
            self.languages,
        )

    def save(self, path: Path | str, provenance: dict[str, Any] | None = None) -> None:
        artifacts.save(
            Path(path),
            "FiringStats",
            {"fired": self.fired, "tokens": self.tokens},
            {"languages": list(self.languages)},
            provenance or {},
        )

    @staticmethod
    def load(path: Path | str) -> "FiringStats":
        stored = artifacts.load(Path(path), "FiringStats")
        return FiringStats(
            stored.tensors["fired"], stored.tensors["tokens"], tuple(stored.labels["languages"])
        )


@dataclass(frozen=True)
class ActivationMoments:
    """Mean and spread of what each neuron's gate and the neuron itself give, per language.

    >>> moments.gate_mean.shape
    torch.Size([3, 6, 2048])
    >>> moments.save(folder / "moments.safetensors")
    >>> interp.ActivationMoments.load(folder / "moments.safetensors").tokens.tolist()
    [640, 640, 640]
    """

    sums: Float64[Tensor, "moment language layer neuron"]
    """Sums over tokens of act(gate), its square, the neuron's output, and its square."""

    tokens: Int64[Tensor, " language"]
    """Tokens read."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    @property
    def gate_mean(self) -> Float64[Tensor, "language layer neuron"]:
        """Mean of act(gate): what a gated neuron multiplies its input by."""
        return self._mean(0)

    @property
    def gate_deviation(self) -> Float64[Tensor, "language layer neuron"]:
        """Standard deviation of act(gate) over tokens; resolved to a thousandth of the mean."""
        return self._deviation(0)

    @property
    def output_mean(self) -> Float64[Tensor, "language layer neuron"]:
        """Mean of the neuron's output: act(gate), times the linear branch where there is one."""
        return self._mean(2)

    @property
    def output_deviation(self) -> Float64[Tensor, "language layer neuron"]:
        """Standard deviation of the output over tokens; resolved to a thousandth of the mean."""
        return self._deviation(2)

    def _mean(self, moment: int) -> Tensor:
        return self.sums[moment] / rearrange(self.tokens, "language -> language 1 1")

    def _deviation(self, moment: int) -> Tensor:
        variance = self._mean(moment + 1) - self._mean(moment) ** 2
        return variance.clamp_min(0).sqrt()

    def save(self, path: Path | str, provenance: dict[str, Any] | None = None) -> None:
        artifacts.save(
            Path(path),
            "ActivationMoments",
            {"sums": self.sums, "tokens": self.tokens},
            {"languages": list(self.languages)},
            provenance or {},
        )

    @staticmethod
    def load(path: Path | str) -> "ActivationMoments":
        stored = artifacts.load(Path(path), "ActivationMoments")
        return ActivationMoments(
            stored.tensors["sums"], stored.tensors["tokens"], tuple(stored.labels["languages"])
        )


@dataclass(frozen=True)
class FiringSigns:
    """Which neurons fire at the last token of each prompt, one bit each.

    >>> exact = interp.load("babel", dtype=torch.float32)
    >>> prompts = interp.read_prompts({"en": ["One is"], "de": ["Eins ist"]}, ["en", "de"])
    >>> rows, wanted = interp.prompt_rows(prompts, exact), interp.Wanted(signs=True)
    >>> _ = interp.collect(exact, rows, folder, wanted=wanted, progress=False)
    >>> interp.FiringSigns.load(folder / "signs.safetensors").fires(5).shape
    torch.Size([1, 2, 2048])
    """

    bits: UInt8[Tensor, "prompt language layer byte"]
    """Eight neurons to a byte, the first in the lowest bit."""

    prompts: tuple[str, ...]
    """The prompts' ids, the same in every language."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    d_mlp: int
    """Neurons per layer; the last byte may have bits to spare."""

    source: Source = "gate"
    """What is compared with the threshold."""

    threshold: float = 0.0
    """What it must exceed to count as firing."""

    def fires(self, layer: int) -> Bool[Tensor, "prompt language neuron"]:
        """One layer, unpacked."""
        return unpack_bits(self.bits[:, :, layer], self.d_mlp)

    def save(self, path: Path | str, provenance: dict[str, Any] | None = None) -> None:
        labels = {
            "prompts": list(self.prompts),
            "languages": list(self.languages),
            "d_mlp": self.d_mlp,
            "source": self.source,
            "threshold": self.threshold,
        }
        artifacts.save(Path(path), "FiringSigns", {"bits": self.bits}, labels, provenance or {})

    @staticmethod
    def load(path: Path | str) -> "FiringSigns":
        stored = artifacts.load(Path(path), "FiringSigns")
        labels = stored.labels
        return FiringSigns(
            stored.tensors["bits"],
            tuple(labels["prompts"]),
            tuple(labels["languages"]),
            labels["d_mlp"],
            labels.get("source", "gate"),  # older files do not say
            labels.get("threshold", 0.0),
        )


def pack_bits(fires: Bool[Tensor, "*batch neuron"]) -> UInt8[Tensor, "*batch byte"]:
    """Eight booleans to a byte, the first in the lowest bit; spare bits are zero."""
    spare = -fires.shape[-1] % 8
    padded = torch.nn.functional.pad(fires, (0, spare)).to(torch.uint8)
    grouped = rearrange(padded, "... (byte bit) -> ... byte bit", bit=8)
    weight = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=fires.device)
    return (grouped * weight).sum(dim=-1, dtype=torch.uint8)


def unpack_bits(bits: UInt8[Tensor, "*batch byte"], n: int) -> Bool[Tensor, "*batch neuron"]:
    """The first `n` booleans of each row of bytes."""
    shift = torch.arange(8, dtype=torch.uint8, device=bits.device)
    opened = (rearrange(bits, "... byte -> ... byte 1") >> shift) & 1
    return rearrange(opened, "... byte bit -> ... (byte bit)")[..., :n].bool()


def source_kind(source: Source) -> Kind:
    """The site where a source is read."""
    if source not in get_args(Source):
        raise ValueError(f"Neurons fire by {' or '.join(get_args(Source))}, not by {source!r}.")
    return "pre" if source == "gate" else "post"


def warn_of_rounded_signs(model: NeuronModel) -> None:
    """Say what 16 bits do to the question whether a neuron fires; nothing in float32 or finer."""
    if model.dtype in (torch.float16, torch.bfloat16):
        warnings.warn(
            f"{model.name} is in {model.dtype}: whether a neuron close to the threshold fires is "
            "rounding. Of Babel's gates about 2 in 1,000 change sides in bfloat16 and 3 in 10,000 "
            "in float16, and of categories of sharing two to three times as many. Load it with "
            "dtype=torch.float32 (--dtype float32) for numbers you report.",
            stacklevel=3,
        )


# ---------------------------------------------------------------- counters
#
# A counter belongs to one shard of one language. It is allocated whole, layer by layer where the
# layer lives, and does not grow with the text; `tensors()` shares no memory with it.


class FiringCounter:
    """Tokens on which each gate is above zero."""

    kinds: tuple[Kind, ...] = ("pre",)

    def __init__(self, model: NeuronModel) -> None:
        self._fired = [
            torch.zeros(model.d_mlp, dtype=torch.int64, device=model.layer_device(layer))
            for layer in range(model.n_layers)
        ]
        self._tokens = torch.zeros(model.n_layers, dtype=torch.int64)

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        fires = rearrange(values > 0, "batch pos neuron -> (batch pos) neuron")
        if not batch.whole:
            fires = fires[rearrange(batch.keep, "batch pos -> (batch pos)")]
        # Bytes are summed three times as fast as booleans.
        self._fired[layer] += fires.view(torch.int8).sum(dim=0, dtype=torch.int32)
        self._tokens[layer] += len(fires)

    def tensors(self) -> dict[str, Tensor]:
        if (self._tokens != self._tokens[0]).any():
            raise ValueError(
                f"Layers disagree on how many tokens they saw: {self._tokens.tolist()}."
            )
        fired = torch.stack([each.cpu() for each in self._fired])
        return {"firing.fired": fired, "firing.tokens": self._tokens[:1].clone()}


class MomentsCounter:
    """Sums of act(gate), of the neuron's output, and of their squares."""

    kinds: tuple[Kind, ...] = ("pre", "post")

    def __init__(self, model: NeuronModel) -> None:
        self._model = model
        self._sums = [
            torch.zeros(4, model.d_mlp, dtype=torch.float64, device=model.layer_device(layer))
            for layer in range(model.n_layers)
        ]
        self._tokens = 0

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        if kind == "pre" and not self._model.gated:
            return  # the output is act(gate) itself
        values = self._model.act(layer, values) if kind == "pre" else values
        flat = rearrange(values, "batch pos neuron -> (batch pos) neuron").float()
        keep = rearrange(batch.keep, "batch pos -> (batch pos)")
        if not batch.whole:
            flat = flat[keep]
        # Products with ones; a norm over the first axis takes eighteen times as long on a CPU.
        ones = torch.ones(len(flat), device=flat.device)
        total, squares = ones @ flat, ones @ (flat * flat)
        first = 0 if kind == "pre" else 2
        self._sums[layer][first] += total
        self._sums[layer][first + 1] += squares
        if kind == "post" and not self._model.gated:
            self._sums[layer][0] += total
            self._sums[layer][1] += squares
        if kind == "post" and layer == 0:
            self._tokens += len(flat)

    def tensors(self) -> dict[str, Tensor]:
        return {
            "moments.sums": torch.stack([each.cpu() for each in self._sums], dim=1),
            "moments.tokens": torch.tensor([self._tokens]),
        }


class SentenceMeansCounter:
    """Mean over the tokens of each row, for every unit of the sites asked for.

    With `special_tokens`, beginning-of-text and other special tokens of the row count too.
    """

    def __init__(
        self,
        model: NeuronModel,
        kinds: tuple[Kind, ...],
        n_rows: int,
        special_tokens: bool = False,
    ) -> None:
        self.kinds = kinds
        self._special_tokens = special_tokens
        self._means = {
            (kind, layer): torch.zeros(n_rows, model.width(layer, kind))
            for kind in kinds
            for layer in range(model.n_layers)
        }

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None:
        counted = batch.keep
        if self._special_tokens:
            place = torch.arange(batch.keep.shape[1], device=values.device)
            counted = place < rearrange(batch.length, "batch -> batch 1")
        weight = counted / reduce(counted.float(), "batch pos -> batch 1", "sum")
        means = einsum(weight, values.float(), "batch pos, batch pos unit -> batch unit")
        self._means[kind, layer][list(batch.rows)] = means.cpu()

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"means.{kind}.{layer}": means.clone() for (kind, layer), means in self._means.items()
        }


class SignsCounter:
    """Whether each gate, or each output, exceeds a threshold at the last token of each row."""

    def __init__(
        self,
        model: NeuronModel,
        n_rows: int,
        source: Source = "gate",
        threshold: float = 0.0,
    ) -> None:
        self.kinds: tuple[Kind, ...] = (source_kind(source),)
        if not math.isfinite(threshold):
            raise ValueError(f"What must be exceeded to fire is {threshold}: give a number.")
        warn_of_rounded_signs(model)
        self._threshold = threshold
        self._bits = torch.zeros(n_rows, model.n_layers, -(-model.d_mlp // 8), dtype=torch.uint8)

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos neuron"], batch: Batch
    ) -> None:
        every = torch.arange(len(batch.rows), device=values.device)
        last = values[every, batch.length.long() - 1]
        self._bits[list(batch.rows), layer] = pack_bits(last > self._threshold).cpu()

    def tensors(self) -> dict[str, Tensor]:
        return {"signs.bits": self._bits.clone()}


@dataclass(frozen=True)
class SentenceMeans:
    """What every unit gives on every sentence, on disk: one site of one layer is read at a time.

    >>> means.kinds, means.languages, len(means.labels)
    (('pre',), ('en', 'de', 'zh'), 60)
    >>> means.read("pre", 5).shape
    torch.Size([60, 2048])
    """

    pieces: tuple[Path, ...]
    """Files of the finished run."""

    labels: Int64[Tensor, " sentence"]
    """Index into `languages` of each sentence."""

    languages: tuple[str, ...]
    """ISO codes."""

    kinds: tuple[Kind, ...]
    """The sites that were kept."""

    @property
    def n_layers(self) -> int:
        with safe_open(self.pieces[0], framework="pt") as file:
            names = list(file.keys())
        return sum(name.startswith(f"means.{self.kinds[0]}.") for name in names)

    def read(self, kind: Kind, layer: int) -> Float[Tensor, "sentence unit"]:
        """Mean over the sentence's tokens, for each unit of a site."""
        if kind not in self.kinds:
            raise ValueError(f"No means of {kind!r} were kept, only of {', '.join(self.kinds)}.")
        name, parts = f"means.{kind}.{layer}", []
        for path in self.pieces:
            with safe_open(path, framework="pt") as file:
                parts.append(file.get_tensor(name))
        return torch.cat(parts)
