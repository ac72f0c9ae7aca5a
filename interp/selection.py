"""Which neurons belong to which language: selecting them, comparing selections, handing them on."""

import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import artifacts
from interp.model import NeuronModel
from interp.scores.lape import busy_threshold, language_entropy
from interp.stats import FiringStats

FORMAT = "polyneuron NeuronSelection 1"


@dataclass(frozen=True)
class NeuronSelection:
    """A set of neurons for each language."""

    mask: Bool[Tensor, "language layer neuron"]
    """True where the neuron belongs to the language; a neuron may belong to several."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    def __post_init__(self) -> None:
        if len(self.languages) != len(self.mask) or len(set(self.languages)) != len(self.mask):
            raise ValueError(
                f"The mask has {len(self.mask)} languages and the names are "
                f"{', '.join(self.languages) or 'none'}: give one name for each, none twice."
            )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NeuronSelection)
            and self.languages == other.languages
            and torch.equal(self.mask, other.mask)
        )

    def __getitem__(self, language: str) -> Bool[Tensor, "layer neuron"]:
        return self.mask[self._index(language)]

    def __and__(self, other: "NeuronSelection") -> "NeuronSelection":
        """Neurons that both selections give to the language."""
        return NeuronSelection(self.mask & self._mask_of(other), self.languages)

    def __or__(self, other: "NeuronSelection") -> "NeuronSelection":
        """Neurons that either selection gives to the language."""
        return NeuronSelection(self.mask | self._mask_of(other), self.languages)

    def __sub__(self, other: "NeuronSelection") -> "NeuronSelection":
        """Neurons that this selection gives to the language and the other does not."""
        return NeuronSelection(self.mask & ~self._mask_of(other), self.languages)

    def __invert__(self) -> "NeuronSelection":
        """For each language, the neurons that do not belong to it."""
        return NeuronSelection(~self.mask, self.languages)

    @property
    def n_layers(self) -> int:
        return self.mask.shape[1]

    @property
    def n_neurons(self) -> int:
        """Neurons per layer (d_mlp)."""
        return self.mask.shape[2]

    def restrict(self, languages: Sequence[str]) -> "NeuronSelection":
        """Some of the languages, in the order given."""
        rows = [self._index(language) for language in languages]
        return NeuronSelection(self.mask[rows], tuple(languages))

    def counts(self) -> dict[str, int]:
        """Neurons per language."""
        sizes = self.layer_profile().sum(dim=1).tolist()
        return dict(zip(self.languages, sizes, strict=True))

    def languages_per_neuron(self) -> Int[Tensor, "layer neuron"]:
        """To how many languages each neuron belongs."""
        return reduce(self.mask.long(), "language layer neuron -> layer neuron", "sum")

    def union(self) -> Bool[Tensor, "layer neuron"]:
        """Neurons that belong to any language."""
        return self.shared(at_least=1)

    def shared(self, at_least: int = 2) -> Bool[Tensor, "layer neuron"]:
        """Neurons that belong to `at_least` languages or more."""
        return self.languages_per_neuron() >= at_least

    def layer_profile(self) -> Int[Tensor, "language layer"]:
        """Neurons per language and layer."""
        return reduce(self.mask.long(), "language layer neuron -> language layer", "sum")

    def overlap(self) -> Int[Tensor, "language language"]:
        """Neurons that two languages have in common; on the diagonal, neurons of the language."""
        common = torch.zeros(len(self.languages), len(self.languages), dtype=torch.float64)
        for layer in self.mask.unbind(dim=1):
            common += layer.double() @ layer.double().T
        return common.long()

    def jaccard(self) -> Float[Tensor, "language language"]:
        """Shared neurons of two languages divided by their union.

        Zero: none in common. One: the same neurons. NaN: both have none.
        """
        common = self.overlap().double()
        size = common.diagonal()
        return common / (
            rearrange(size, "language -> language 1")
            + rearrange(size, "language -> 1 language")
            - common
        )

    def random_like(
        self, generator: torch.Generator, exclude: Bool[Tensor, "layer neuron"] | None = None
    ) -> "NeuronSelection":
        """A control: as many neurons per language and layer, drawn at random.

        With `exclude`, drawn from the other neurons; `selection.union()` keeps the control clear
        of every selected neuron.
        """
        barred = torch.zeros_like(self.mask[0]) if exclude is None else exclude
        room = self.n_neurons - reduce(barred.long(), "layer neuron -> layer", "sum")
        profile = self.layer_profile()
        if (profile > room).any():
            row, layer = (profile > room).nonzero()[0].tolist()
            raise ValueError(
                f"{self.languages[row]} has {profile[row, layer]} neurons in layer {layer}, and "
                f"only {room[layer]} of {self.n_neurons} are left to draw from: exclude fewer."
            )
        drawn = []
        for size in profile:
            noise = torch.rand(barred.shape, generator=generator, dtype=torch.float64)
            rank = noise.masked_fill(barred, 1.0).argsort(dim=-1, stable=True).argsort(dim=-1)
            drawn.append(rank < rearrange(size, "layer -> layer 1"))
        return NeuronSelection(torch.stack(drawn), self.languages)

    def check_model(self, model: NeuronModel) -> None:
        """Refuse a model of another size, before a wrong neuron is touched."""
        if (model.n_layers, model.d_mlp) != (self.n_layers, self.n_neurons):
            raise ValueError(
                f"This selection is for {self.n_layers} layers of {self.n_neurons} neurons, and "
                f"{model.name} has {model.n_layers} of {model.d_mlp}: use the model it was made "
                "with."
            )

    def triples(self) -> list[tuple[int, int, int]]:
        """Sorted (index of the language, layer, neuron)."""
        return [(row, layer, neuron) for row, layer, neuron in self.mask.nonzero().tolist()]

    @staticmethod
    def from_triples(
        triples: Iterable[Sequence[int]], languages: Sequence[str], n_layers: int, n_neurons: int
    ) -> "NeuronSelection":
        """The selection that holds these (index of the language, layer, neuron)."""
        mask = torch.zeros(len(languages), n_layers, n_neurons, dtype=torch.bool)
        for triple in triples:
            if len(triple) != 3 or not all(
                type(place) is int and 0 <= place < size
                for place, size in zip(triple, mask.shape, strict=True)
            ):
                raise ValueError(
                    f"{tuple(triple)} is no (language, layer, neuron) of {len(languages)} "
                    f"languages, {n_layers} layers and {n_neurons} neurons per layer: count from "
                    "zero, in whole numbers."
                )
            mask[tuple(triple)] = True
        return NeuronSelection(mask, tuple(languages))

    def to_json(self, path: Path | str, provenance: dict[str, Any] | None = None) -> None:
        """A file that people can read: one line per language and layer; empty layers left out."""
        blocks = []
        for language in self.languages:
            rows = [
                f'   "{layer}": {json.dumps(chosen.nonzero().flatten().tolist())}'
                for layer, chosen in enumerate(self[language])
                if chosen.any()
            ]
            lines = "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"
            blocks.append(f"  {json.dumps(language)}: {lines}")
        head = {
            "format": FORMAT,
            "languages": list(self.languages),
            "n_layers": self.n_layers,
            "n_neurons": self.n_neurons,
            "provenance": provenance or {},
        }
        entries = [
            f' "{name}": {json.dumps(value, ensure_ascii=False, sort_keys=True)}'
            for name, value in head.items()
        ]
        neurons = ' "neurons": {\n' + ",\n".join(blocks) + "\n }"
        artifacts.write_text(path, "{\n" + ",\n".join([*entries, neurons]) + "\n}\n")

    @staticmethod
    def from_json(path: Path | str) -> "NeuronSelection":
        """Read what `to_json` wrote, or somebody else wrote in that form."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is missing. Make it with NeuronSelection.to_json.")
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            if stored["format"] != FORMAT:
                raise ValueError(f"its format is {stored['format']!r}, not {FORMAT!r}")
            languages = tuple(stored["languages"])
            if set(stored["neurons"]) != set(languages):
                raise ValueError("the languages named and the languages that have neurons differ")
            return NeuronSelection.from_triples(
                [
                    (row, int(layer), neuron)
                    for row, language in enumerate(languages)
                    for layer, neurons in stored["neurons"][language].items()
                    for neuron in neurons
                ],
                languages,
                stored["n_layers"],
                stored["n_neurons"],
            )
        except KeyError as error:
            raise ValueError(
                f"{path} is no selection: it has no {error}; a selection has format, languages, "
                "n_layers, n_neurons and neurons."
            ) from None
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{path} is no selection that can be read ({error}): write it with "
                "NeuronSelection.to_json."
            ) from None

    def to_lape_pth(self, path: Path | str) -> None:
        """The published format (Tang et al., 2024): a list by language of lists by layer of ids.

        The file does not say which language is which, nor how many neurons a layer has.
        """
        lists = [[chosen.nonzero().flatten() for chosen in layers] for layers in self.mask]
        buffer = io.BytesIO()
        torch.save(lists, buffer)
        artifacts.write_bytes(path, buffer.getvalue())

    @staticmethod
    def from_lape_pth(
        path: Path | str, languages: Sequence[str], n_neurons: int
    ) -> "NeuronSelection":
        """Read the published format; the languages, in the file's order, are the caller's to name.

        The authors' files hold en zh fr es vi id, and ja after them for LLaMA-2 7B and 13B only.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is missing: give the path of a mask file (.pth).")
        try:
            lists = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever a damaged archive or a foreign object provokes
            raise ValueError(
                f"{path} cannot be read as tensors alone ({type(error).__name__}): it must be a "
                "list by language of lists by layer of id tensors, saved with torch.save."
            ) from None
        if not _is_lape(lists):
            raise ValueError(f"{path} is no list by language of lists by layer of int64 ids.")
        if len(lists) != len(languages):
            raise ValueError(
                f"{path} holds {len(lists)} languages, and {len(languages)} are named "
                f"({', '.join(languages)}): name those of the file, in its order."
            )
        mask = torch.zeros(len(lists), len(lists[0]), n_neurons, dtype=torch.bool)
        for language, layers, row in zip(languages, lists, mask, strict=True):
            for layer, ids in enumerate(layers):
                if len(ids) and not 0 <= ids.min() <= ids.max() < n_neurons:
                    raise ValueError(
                        f"{path} has neurons {ids.min()} to {ids.max()} in layer {layer} of "
                        f"{language}, and a layer has {n_neurons}: give the model's d_mlp."
                    )
                row[layer, ids] = True
        return NeuronSelection(mask, tuple(languages))

    def _index(self, language: str) -> int:
        if language not in self.languages:
            raise KeyError(
                f"{language!r} is not in this selection, which covers {', '.join(self.languages)}."
            )
        return self.languages.index(language)

    def _mask_of(self, other: "NeuronSelection") -> Bool[Tensor, "language layer neuron"]:
        if self.languages != other.languages or self.mask.shape != other.mask.shape:
            raise ValueError(
                f"One selection has {self.n_layers} layers of {self.n_neurons} neurons for "
                f"{', '.join(self.languages)}, the other {other.n_layers} of {other.n_neurons} for "
                f"{', '.join(other.languages)}: they must be of one model and have the same "
                "languages in the same order (see restrict)."
            )
        return other.mask


def select_from_rate(
    rate: Float[Tensor, "language layer neuron"],
    languages: Sequence[str],
    fraction: float = 0.01,
    busy_quantile: float = 0.95,
) -> NeuronSelection:
    """The selection of Tang et al. (2024): the least entropy among neurons busy in some language.

    `fraction` of all neurons is taken, and a neuron belongs to every language in which it is busy
    (its rate is above `busy_threshold`), so it belongs to at least one. As in the authors' code
    the one threshold does both; their paper has it once.

    Departs from that code where it leaves things open: ties at the cut go to the lower layer, then
    to the lower neuron; and where there are fewer busy neurons than asked for, this refuses,
    instead of filling up with neurons that belong nowhere.
    """
    n_layers, n_neurons = rate.shape[1:]
    n_chosen = round(fraction * n_layers * n_neurons)
    if not 1 <= n_chosen <= n_layers * n_neurons:
        raise ValueError(
            f"The fraction {fraction} of {n_layers * n_neurons:,} neurons is {n_chosen:,} neurons: "
            "give a share between 0 and 1 that leaves at least one, such as 0.01."
        )
    busy = rate.double() > busy_threshold(rate, busy_quantile)
    candidate = reduce(busy, "language layer neuron -> layer neuron", "any")
    n_candidates = int(candidate.sum())
    if n_candidates < n_chosen:
        raise ValueError(
            f"{n_chosen:,} neurons are asked for (a fraction of {fraction}) and only "
            f"{n_candidates:,} of {n_layers * n_neurons:,} are busy in some language: lower "
            f"fraction or busy_quantile ({busy_quantile})."
        )
    entropy = language_entropy(rate).masked_fill(~candidate, math.inf)
    flat = rearrange(entropy, "layer neuron -> (layer neuron)")
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(stable=True)[:n_chosen]] = True
    chosen = rearrange(chosen, "(layer neuron) -> layer neuron", layer=n_layers)
    return NeuronSelection(busy & chosen, tuple(languages))


def select_by_entropy(
    stats: FiringStats, fraction: float = 0.01, busy_quantile: float = 0.95
) -> NeuronSelection:
    """Language-specific neurons by LAPE (Tang et al., 2024); see `select_from_rate`."""
    return select_from_rate(stats.rate, stats.languages, fraction, busy_quantile)


def jaccard_between(a: NeuronSelection, b: NeuronSelection) -> Float[Tensor, " language"]:
    """How far two selections agree on each language: common neurons divided by the union.

    Zero: on none. One: on all. NaN: neither has a neuron for the language.
    """
    both, either = (list(each.counts().values()) for each in (a & b, a | b))
    return torch.tensor(both).double() / torch.tensor(either).double()


def predicted_agreement(
    stats: FiringStats,
    select: Callable[[FiringStats], NeuronSelection],
    generator: torch.Generator,
    splits: int = 8,
) -> float:
    """Jaccard to expect between this selection and one from as much other text of the same kind.

    The shards are split at random into two halves, `splits` times, and selected from separately.
    Averaged over languages and splits, the two selections share D = 2 |A ∩ B| / (|A| + |B|) of
    their neurons (Dice). What they do not share has crossed a cut, and how many do is in
    proportion to the noise in the rates, which falls with the root of the amount of text. So
    between two runs of all n shards, where a half has h = n // 2,

        D_whole = 1 - (1 - D_half) · √(h / n)        and        J = D_whole / (2 - D_whole).

    √(h / n) is 1/√2 for even n. In simulations with known truth and bursty text this lay within
    0.06 of the Jaccard of two independent runs from 0.5 up, and 0.03 to 0.06 too high at 0.3; it
    knows nothing of text of another kind, on which runs agree far less. A language without
    neurons in both halves of a split is left out of its average. One: the halves agree wholly.
    """
    if stats.n_shards < 2:
        raise ValueError(
            f"There is {stats.n_shards} shard, and two halves need two or more: collect with "
            "n_shards=20."
        )
    half = stats.n_shards // 2
    dices = []
    for _ in range(splits):
        order = torch.randperm(stats.n_shards, generator=generator).tolist()
        first, second = select(stats.subset(order[:half])), select(stats.subset(order[-half:]))
        jaccard = jaccard_between(first, second)
        dices.append((2 * jaccard / (1 + jaccard)).nanmean())
    dice = 1 - (1 - torch.stack(dices).nanmean().item()) * math.sqrt(half / stats.n_shards)
    return dice / (2 - dice)


def text_for_agreement(agreement: float, wanted: float = 0.95) -> float:
    """How many times the text would be needed for two runs to agree to a Jaccard of `wanted`.

    What two selections do not share, 1 - D with D = 2 J / (1 + J), falls with the root of the text
    (see `predicted_agreement`), so the text must grow by the square of the ratio. One: it is
    enough as it is. Below one: less would have been enough. Zero: they agree wholly already.
    """
    if not (0 <= agreement <= 1 and 0 < wanted < 1):
        raise ValueError(
            f"Agreement {agreement} and wanted {wanted} must be shares, wanted between 0 and 1."
        )
    have, want = (1 - 2 * jaccard / (1 + jaccard) for jaccard in (agreement, wanted))
    return (have / want) ** 2


def until_stable(
    jaccard: float = 0.95, fraction: float = 0.01, busy_quantile: float = 0.95, seed: int = 0
) -> Callable[[FiringStats], bool]:
    """A rule for `collect`: stop once another run is predicted to reach this Jaccard.

    It asks `predicted_agreement` of the selection by entropy, from four shards on; equal statistics
    get equal answers.
    """
    if not 0 < jaccard <= 1:
        raise ValueError(f"jaccard is {jaccard}: give a share above 0 and up to 1, such as 0.95.")

    def select(stats: FiringStats) -> NeuronSelection:
        return select_by_entropy(stats, fraction, busy_quantile)

    def is_stable(stats: FiringStats) -> bool:
        if stats.n_shards < 4:
            return False
        generator = torch.Generator().manual_seed(seed)
        try:
            return predicted_agreement(stats, select, generator) >= jaccard
        except ValueError:  # half the shards may be too little to select from; more may come
            return False

    return is_stable


def _is_lape(lists: object) -> bool:
    return (
        isinstance(lists, list)
        and len(lists) > 0
        and all(isinstance(layers, list) and len(layers) == len(lists[0]) for layers in lists)
        and all(
            isinstance(ids, Tensor) and ids.ndim == 1 and ids.dtype == torch.int64
            for layers in lists
            for ids in layers
        )
    )
