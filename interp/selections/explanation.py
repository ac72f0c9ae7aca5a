"""What a label's neurons follow: its script, word order, words, or the language whatever they are.

Romanised text of a language uses nearly disjoint units (arXiv 2604.05090, ACL 2026), so what LAPE
finds may be script. Here the neurons of a label are selected by LAPE on the text as it is. Then the
label's text, and no other, is replaced by a counterfactual (`interp.text.counterfactuals.KINDS`),
and a neuron stays if it would still be selected, with the thresholds that were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.inference.intervals import Estimate, jackknife
from interp.results.display import Cells, table_cells
from interp.results.frames import tidy
from interp.results.saved import Saved
from interp.scores.lape import busy_threshold, language_entropy, least_entropy
from interp.selections.neuron_selection import NeuronSelection
from interp.text.counterfactuals import KINDS, SEPARATOR, split_label
from interp.text.languages import label_name

ASPECTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "script": ("romanised", "cyrillic"),
        "word order": ("words-shuffled",),
        "word form": ("letters-shuffled",),
        "content": ("words-replaced",),
        "all but frequencies": ("tokens-drawn",),
    }
)
"""What is taken away → the counterfactuals that take it; of two, a label has one."""

_ALONE = "all but frequencies"
_ROUNDING = 1e-9  # nats: entropies are summed in another order than for the selection


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation(Saved):
    """Of each label's neurons, the share that stays when something is taken from its text.

    >>> labels = ("en", "de", "en~words-shuffled", "de~words-shuffled")
    >>> fired = torch.zeros(4, 4, 1, 50, dtype=torch.int64)
    >>> fired[:, [0, 2], 0, :9] = 30  # nine neurons of English, whatever the order of words
    >>> fired[:, 1, 0, 9:20] = 30  # eleven of German, in their order alone
    >>> stats = interp.FiringStats(fired, torch.full((4, 4), 90), labels)
    >>> interp.selections.explain(stats, fraction=0.4, busy_quantile=0.5).kept.tolist()
    [[1.0], [0.0]]
    """

    kind = "Explanation"
    made_by = "interp.selections.explain(stats), or `interp explain` on the command line"

    languages: tuple[str, ...]
    """Labels whose neurons were selected."""

    aspects: tuple[str, ...]
    """What was taken from their text, as in `ASPECTS`."""

    neurons: Int64[Tensor, " language"]
    """How many neurons a label has."""

    kept: Float64[Tensor, "language aspect"]
    """Share of them that stays; NaN: the label has no neurons, or no such counterfactual."""

    kept_low: Float64[Tensor, "language aspect"]
    """Lower ends of 95 % intervals over shards."""

    kept_high: Float64[Tensor, "language aspect"]
    """Upper ends."""

    random: Float64[Tensor, "language aspect"]
    """The share expected of as many random neurons in every layer: how many neurons of any kind
    would be selected for the label on the counterfactual."""

    random_low: Float64[Tensor, "language aspect"]
    """Lower ends of 95 % intervals over shards."""

    random_high: Float64[Tensor, "language aspect"]
    """Upper ends."""

    def __repr__(self) -> str:
        return f"Explanation({', '.join(self.aspects)} taken from {', '.join(self.languages)})"

    def to_frame(self) -> pd.DataFrame:
        """One row per label and aspect."""
        names = ("kept", "kept_low", "kept_high", "random", "random_low", "random_high")
        values = {name: getattr(self, name) for name in names}
        neurons = rearrange(self.neurons, "language -> language 1")
        axes = {"language": self.languages, "without": self.aspects}
        return tidy(axes, {"neurons": neurons, **values})

    def sentences(self) -> str:
        """A paragraph: a sentence for each label, and one that compares labels."""
        return " ".join([*map(self._sentence, range(len(self.languages))), self._summary()])

    def _cells(self) -> Cells:
        shares = {
            f"without {aspect}": [f"{share:.0%}" for share in self.kept[:, column].tolist()]
            for column, aspect in enumerate(self.aspects)
        }
        columns = {"label": self.languages, "neurons": self.neurons.tolist(), **shares}
        return table_cells(columns, "share of a label's neurons that stays")

    def _sentence(self, row: int) -> str:
        shares = [
            f"{_phrase(aspect)} {self.kept[row, column]:.0%} ({self.kept_low[row, column]:.0%} to "
            f"{self.kept_high[row, column]:.0%}; of random ones {self.random[row, column]:.0%})"
            for column, aspect in enumerate(self.aspects)
            if not self.kept[row, column].isnan()
        ]
        count = f"Of the {self.neurons[row]:,} neurons of {label_name(self.languages[row])}"
        return f"{count} stay {', '.join(shares)}." if shares else f"{count} nothing is known."

    def _summary(self) -> str:
        mean = {
            aspect: column[~column.isnan()].mean().item()
            for aspect, column in zip(self.aspects, self.kept.unbind(dim=1), strict=True)
            if not column.isnan().all()
        }
        alone = mean.pop(_ALONE, None)
        parts = [f"{share:.0%} {_phrase(_ALONE)}" for share in [alone] if share is not None]
        if mean:
            most = min(mean, key=mean.__getitem__)
            parts.insert(0, f"{mean[most]:.0%} {_phrase(most)}, which they need most")
        return f"On average over labels stay {', and '.join(parts)}." if parts else ""


def _phrase(aspect: str) -> str:
    return "with token frequencies alone" if aspect == _ALONE else f"without {aspect}"


def explain(stats: FiringStats, fraction: float = 0.01, busy_quantile: float = 0.95) -> Explanation:
    """What the neurons of each label follow, from counts on its text and on counterfactuals of it.

    Collect them as labels: `ru` and `ru~romanised`, or with `interp.text.with_counterfactuals`.
    Labels without counterfactuals are competitors only. The intervals are those of a jackknife over
    shards, in which neurons are selected anew.

    >>> labels = ("en", "de", "en~cyrillic", "de~cyrillic")
    >>> fired = torch.randint(0, 90, (4, 4, 1, 50), generator=generator)
    >>> stats = interp.FiringStats(fired, torch.full((4, 4), 90), labels)
    >>> interp.selections.explain(stats, fraction=0.1, busy_quantile=0.5)
    Explanation(script taken from en, de)
    """
    labels, aspects = _collected(stats)

    def shares(part: FiringStats) -> Float64[Tensor, "share language aspect"]:
        chosen, stays = _memberships(part, labels, aspects, fraction, busy_quantile)
        per_layer = reduce(chosen.double(), "language layer neuron -> language layer", "sum")
        n = rearrange(per_layer.sum(dim=1), "language -> language 1")
        kept = torch.full((len(labels), len(aspects)), torch.nan, dtype=torch.float64)
        random = kept.clone()
        for (row, column), mask in stays.items():
            kept[row, column] = (mask & chosen[row]).sum()
            random[row, column] = per_layer[row] @ mask.double().mean(dim=1)
        return torch.stack([kept / n, random / n])

    estimate = jackknife(stats, shares)
    chosen, _ = _memberships(stats, labels, (), fraction, busy_quantile)
    return Explanation(
        languages=labels,
        aspects=aspects,
        neurons=reduce(chosen.long(), "language layer neuron -> language", "sum"),
        **_columns("kept", estimate, 0),
        **_columns("random", estimate, 1),
    )


def beyond_script(
    stats: FiringStats, fraction: float = 0.01, busy_quantile: float = 0.95
) -> NeuronSelection:
    """The neurons that a label keeps when its text is written in another script.

    >>> labels = ("en", "de", "en~cyrillic", "de~cyrillic")
    >>> fired = torch.randint(0, 90, (4, 4, 1, 50), generator=generator)
    >>> stats = interp.FiringStats(fired, torch.full((4, 4), 90), labels)
    >>> beyond = interp.selections.beyond_script(stats, fraction=0.1, busy_quantile=0.5)
    >>> of_text = interp.select_by_entropy(stats.languages_only(["en", "de"]), 0.1, 0.5)
    >>> beyond - of_text == beyond & ~beyond
    True
    """
    labels, aspects = _collected(stats)
    if "script" not in aspects:
        raise ValueError(
            "No label has a counterfactual in another script: collect, for example, ru~romanised "
            "or de~cyrillic beside ru and de."
        )
    chosen, stays = _memberships(stats, labels, ("script",), fraction, busy_quantile)
    rows = [row for row in range(len(labels)) if (row, 0) in stays]
    mask = torch.stack([stays[row, 0] & chosen[row] for row in rows])
    return NeuronSelection(mask, tuple(labels[row] for row in rows), layout=stats.layout)


def _collected(stats: FiringStats) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels with counterfactuals, and the aspects that are taken from at least one of them."""
    pairs = [split_label(label) for label in stats.languages]
    kinds = {kind for base, kind in pairs if kind and base in stats.languages}
    labels = tuple(
        label
        for label in stats.languages
        if any(base == label and kind is not None for base, kind in pairs)
    )
    if not labels:
        raise ValueError(
            "The counts hold no label with a counterfactual, such as ru beside ru~romanised: "
            f"collect with --counterfactuals, or name them. Kinds are {', '.join(KINDS)}."
        )
    return labels, tuple(name for name, kind in ASPECTS.items() if kinds & set(kind))


def _memberships(
    stats: FiringStats,
    labels: Sequence[str],
    aspects: Sequence[str],
    fraction: float,
    busy_quantile: float,
) -> tuple[
    Bool[Tensor, "language layer neuron"], dict[tuple[int, int], Bool[Tensor, "layer neuron"]]
]:
    """The neurons of each label, and for each label and aspect those selected without it."""
    originals = [label for label in stats.languages if split_label(label)[1] is None]
    own = stats.languages_only(originals).rate  # the others one by one: there may be hundreds
    selected = least_entropy(own, fraction, busy_quantile)
    busy = busy_threshold(own, busy_quantile)
    chosen = reduce(selected, "language layer neuron -> layer neuron", "any")
    largest = language_entropy(own)[chosen].max()
    sums = own.sum(dim=0), torch.xlogy(own, own).sum(dim=0)
    stays = {}
    for (row, label), (column, aspect) in product(enumerate(labels), enumerate(aspects)):
        if (name := _counterfactual(stats, label, aspect)) is not None:
            new = stats.languages_only([name]).rate[0]
            entropy = _entropy_with(sums, own[originals.index(label)], new)
            stays[row, column] = (entropy <= largest + _ROUNDING) & (new > busy)
    return torch.stack([selected[originals.index(label)] for label in labels]), stays


def _counterfactual(stats: FiringStats, label: str, aspect: str) -> str | None:
    """The label of the text from which the aspect was taken; None: it was not read."""
    names = [f"{label}{SEPARATOR}{kind}" for kind in ASPECTS[aspect]]
    return next((name for name in names if name in stats.languages), None)


def _entropy_with(
    sums: tuple[Float64[Tensor, "layer neuron"], Float64[Tensor, "layer neuron"]],
    old: Float64[Tensor, "layer neuron"],
    new: Float64[Tensor, "layer neuron"],
) -> Float64[Tensor, "layer neuron"]:
    """Entropy over labels after one label's rate is replaced; `sums` of rates r and of r · log r.

    With T the sum of rates, it is log T - Σ r log r / T. NaN: no rate is above zero.
    """
    total = sums[0] - old + new
    products = sums[1] - torch.xlogy(old, old) + torch.xlogy(new, new)
    return total.log() - products / total


def _columns(
    name: str, estimate: Estimate, index: int
) -> dict[str, Float64[Tensor, "language aspect"]]:
    """A share and the ends of its interval, which are shares too."""
    ends = {"": estimate.value, "_low": estimate.low, "_high": estimate.high}
    return {f"{name}{end}": values[index].clamp(0, 1) for end, values in ends.items()}
