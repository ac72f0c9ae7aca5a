"""Turn language A's neurons off, read language B: how much worse is the text predicted?

Differences are paired: the same shards of documents, with and without. Their intervals are over
documents, that is over other text of the kind that was read, not over other random neurons.
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float64
from torch import Tensor

from interp.evaluations.losses import (
    Losses,
    check_text,
    nats_per_token,
    read_all,
)
from interp.inference.intervals import Estimate, jackknife_shards
from interp.inference.permutation import PermutationTest
from interp.interventions.edits import Edit, deactivate
from interp.interventions.under import Changes, check_under
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.display import Shaded, counted, html_table, listed
from interp.results.frames import interval_columns, tidy
from interp.results.saved import Saved
from interp.results.words import NOTHING, Tokens
from interp.runs.folder import read_plan
from interp.runs.ray import ActorPool, Ray
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora

_MOST_RELABELINGS = 9999
"""Up to 7 languages have no more than these, and all are tried; beyond, as many are drawn."""


@dataclass(frozen=True, kw_only=True)
class DiagonalDominance:
    """Do a language's neurons matter to that language more than to the others?"""

    languages: tuple[str, ...]
    """Those that have neurons and were read; nothing else is compared."""

    own_minus_others: Estimate
    """[language] Increase on the language itself minus the mean of those on the others, when its
    neurons are off: nats per token."""

    mean: Estimate
    """The mean of these over languages; its interval is over documents, for these languages."""

    test: PermutationTest
    """Could that mean be chance? The names of the sets of neurons are dealt out anew: were sets
    and languages strangers, each set would go with each language alike, and the mean would be zero.
    That some sets do more harm, and some languages suffer more, is in every relabeling."""

    largest_in_row: tuple[str, ...]
    """Languages whose neurons increase no other language's loss as much as their own."""

    largest_in_column: tuple[str, ...]
    """Languages whose loss no other language's neurons increase as much as their own."""

    def __repr__(self) -> str:
        n = len(self.languages)
        return (
            f"DiagonalDominance(own minus others {self.mean} nats per token; p = "
            f"{self.test.p_value:.4f}, the smallest possible {self.test.smallest_p:.4f}; own is "
            f"largest in {len(self.largest_in_row)} of {counted(n, 'row')} and "
            f"{len(self.largest_in_column)} of {counted(n, 'column')})"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per language."""
        frame = tidy({"language": self.languages}, {"own_minus_others": self.own_minus_others})
        return frame.assign(
            largest_in_row=frame["language"].isin(self.largest_in_row),
            largest_in_column=frame["language"].isin(self.largest_in_column),
        )


@dataclass(frozen=True, kw_only=True)
class PerplexityMatrix(Saved):
    """Language A's neurons off, language B read, beside as many random neurons.

    >>> german, text_in_german = neurons.languages_only(["de"]), text.languages_only(["de"])
    >>> interp.perplexity_matrix(model, german, text_in_german, n_draws=1, progress=False)
    PerplexityMatrix(off: de; read: de; 1 random draw)
    """

    kind = "PerplexityMatrix"
    made_by = "interp.perplexity_matrix(model, selection, corpora, out=...)"

    losses: Losses
    """With nothing changed, then with the neurons of each language of the selection."""

    random: Float64[Tensor, "shard draw off read"]
    """Nats with random neurons in the place of each language's, as many in every layer, drawn
    among those of no language; none where n_draws was 0."""

    neurons: tuple[int, ...]
    """Neurons of each language of the selection; zero: its rows are those of the model as it is."""

    edit: tuple[str, ...]
    """What is done to each language's neurons, such as "deactivate"."""

    def __post_init__(self) -> None:
        shards, off, read = self.losses.nats.shape
        n_shards, _, n_off, n_read = self.random.shape
        if (n_shards, n_off + 1, n_read) != (shards, off, read) or not (
            len(self.neurons) == len(self.edit) == n_off
        ):
            raise ValueError(
                f"The losses are of {shards} shards, {off - 1} sets of neurons and {read} "
                f"languages, the random ones of {n_shards}, {n_off} and {n_read}, and "
                f"{len(self.neurons)} sizes and {len(self.edit)} edits are given."
            )

    def __repr__(self) -> str:
        return (
            f"PerplexityMatrix(off: {listed(self.off)}; read: {listed(self.languages)}; "
            f"{counted(self.random.shape[1], 'random draw')})"
        )

    def _repr_html_(self) -> str | None:
        """The increases with their intervals, and beside them what random neurons do to the row's
        own language; None where there is one shard, and so no interval."""
        if len(self.losses.tokens) < 2:
            return None
        more, control = self.increase, self.control
        most = more.value.abs().nan_to_num().max().item() or 1.0
        rows: list[list[str | Shaded]] = []
        for row, code in enumerate(self.off):
            cells = [
                Shaded(_with_reach(more, row, column), more.value[row, column].item() / most)
                for column in range(len(self.languages))
            ]
            own = self.languages.index(code) if code in self.languages else None
            by_chance = "" if own is None else _with_reach(control, row, own)
            rows.append([code, f"{self.neurons[row]:,}", *cells, by_chance])
        said = f"{self!r}: nats per token more than with nothing off, 95 % intervals"
        columns = ["off", "neurons", *self.languages, "own, random neurons"]
        return html_table(said, columns, rows)

    @property
    def off(self) -> tuple[str, ...]:
        """Languages whose neurons were changed, along the rows."""
        return self.losses.interventions[1:]

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that were read, along the columns."""
        return self.losses.languages

    @property
    def increase(self) -> Estimate:
        """Nats per token more than with nothing changed: [off read], with 95 % intervals."""
        return nats_per_token(self.losses.nats[:, 1:] - self.losses.nats[:, :1], self.losses.tokens)

    @property
    def random_increase(self) -> Estimate:
        """The same for each draw of random neurons: [draw off read]."""
        return nats_per_token(self._random_more, self.losses.tokens)

    @property
    def control(self) -> Estimate:
        """The increase with random neurons, mean over draws: [off read]. NaN: there are none."""
        return nats_per_token(self._random_more.mean(dim=1), self.losses.tokens)

    @property
    def excess(self) -> Estimate:
        """The increase less that of the control, paired: [off read]. NaN: there is no control."""
        more = self.losses.nats[:, 1:] - self.losses.nats[:, :1]
        return nats_per_token(more - self._random_more.mean(dim=1), self.losses.tokens)

    @property
    def _random_more(self) -> Float64[Tensor, "shard draw off read"]:
        return self.random - rearrange(self.losses.nats[:, 0], "shard read -> shard 1 1 read")

    def diagonal(self, generator: torch.Generator | None = None) -> DiagonalDominance:
        """Own language against others, among the languages that have neurons and were read.

        The generator draws relabelings where there are more than 7 languages; None: one with
        seed 0.
        """
        sizes = dict(zip(self.off, self.neurons, strict=True))
        codes = tuple(code for code in self.off if sizes[code] and code in self.languages)
        if len(codes) < 2:
            raise ValueError(
                f"{len(codes)} languages have neurons and were read ({', '.join(codes)}): own "
                "against others needs two or more."
            )
        rows = [self.losses.interventions.index(code) for code in codes]
        columns = [self.languages.index(code) for code in codes]
        nats, tokens = self.losses.nats[:, :, columns], self.losses.tokens[:, columns]
        sums = {"more": nats[:, rows] - nats[:, :1], "tokens": tokens}
        square = nats_per_token(sums["more"], tokens).value
        others = square.clone().fill_diagonal_(-math.inf)
        return DiagonalDominance(
            languages=codes,
            own_minus_others=jackknife_shards(sums, _own_minus_others),
            mean=jackknife_shards(sums, lambda total: _own_minus_others(total).mean()),
            test=_relabeling_test(square, generator or torch.Generator().manual_seed(0)),
            largest_in_row=_named(codes, square.diagonal() > others.amax(dim=1)),
            largest_in_column=_named(codes, square.diagonal() > others.amax(dim=0)),
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each cell, those of the model as it is first; intervals in columns _low, _high.

        `random` is the mean over draws, `excess` what remains of the increase beyond it.
        """
        frame = self.losses.to_frame().rename(columns={"intervention": "off"})
        frame.insert(2, "own", frame["off"] == frame["read"])
        frame.insert(3, "neurons", [size for size in (0, *self.neurons) for _ in self.languages])
        for name, estimate in (("random", self.control), ("excess", self.excess)):
            for column, each in interval_columns(name, estimate).items():
                first = [math.nan] * len(self.languages)
                frame[column] = [*first, *each.flatten().tolist()]
        return frame

    def table(self) -> str:
        """For a terminal: increases, half-widths of their intervals, the control, and the test."""
        lines = [
            "Nats per token more, with a language's neurons off (± half of the 95 % interval):"
        ]
        lines += ["", "off  neurons  " + "".join(f"{code:>15}" for code in self.languages)]
        lines[-1] += "   random"
        increase, control = self.increase, self.control
        for row, code in enumerate(self.off):
            reach = (increase.high - increase.low)[row] / 2
            cells = [
                f"{a:+8.3f} ±{b:5.3f}" for a, b in zip(increase.value[row], reach, strict=True)
            ]
            own = self.languages.index(code) if code in self.languages else None
            random = math.nan if own is None else control.value[row, own].item()
            chance = "       -" if math.isnan(random) else f"{random:+8.3f}"
            lines.append(f"{code:<4}{self.neurons[row]:>8}  {cells}{chance}")
        found = self.diagonal()
        mean = found.mean
        return "\n".join(
            [
                *lines,
                "random: as many random neurons in every layer, the same language read, mean over "
                "draws",
                "",
                f"Own language against the others: {mean.value.item():+.3f} nats "
                f"({mean.low.item():+.3f} to {mean.high.item():+.3f}), "
                f"p = {found.test.p_value:.2g} over {found.test.n_arrangements:,} relabelings.",
                f"The own language suffers most in {len(found.largest_in_row)} of "
                f"{len(found.languages)} rows.",
            ]
        )

    def _stored(self) -> dict[str, Any]:
        losses = self.losses
        return {
            "nats": losses.nats,
            "tokens": losses.tokens,
            "bytes": losses.bytes,
            "random": self.random,
            "neurons": torch.tensor(self.neurons, dtype=torch.int64),
            "off": self.off,
            "read": self.languages,
            "edit": self.edit,
        }

    @classmethod
    def _restored(cls, stored: artifacts.Artifact) -> "PerplexityMatrix":
        tensors, labels = stored.tensors, stored.labels
        losses = Losses(
            nats=tensors["nats"],
            tokens=tensors["tokens"],
            bytes=tensors["bytes"],
            interventions=(NOTHING, *labels["off"]),
            languages=tuple(labels["read"]),
        )
        return PerplexityMatrix(
            losses=losses,
            random=tensors["random"],
            neurons=tuple(tensors["neurons"].tolist()),
            edit=tuple(labels["edit"]),
        )


def _with_reach(estimate: Estimate, row: int, column: int) -> str:
    """A cell of a table; nothing where there is no number."""
    value, high = estimate.value[row, column].item(), estimate.high[row, column].item()
    return "" if math.isnan(value) else f"{value:z.3f} ± {high - value:.3f}"


def perplexity_matrix(
    model: NeuronModel,
    selection: NeuronSelection,
    corpora: Corpora,
    edit: Edit | Mapping[str, Edit] = deactivate,
    *,
    tokens: Tokens = "all",
    n_draws: int = 3,
    generator: torch.Generator | None = None,
    out: Path | str | None = None,
    tokens_per_batch: int = 4096,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> PerplexityMatrix:
    """Each language's neurons off in turn, and every language of the corpora read.

    The languages read may be others than those of the selection; read text that the selection was
    not made from. `edit` is one for all, or one per language where it has values, such as
    `{code: replace(moments, code) for code in selection.languages}`. The control costs as much as
    the matrix for each of its `n_draws`; None for `generator`: one with seed 0.

    With K languages, (1 + (1 + n_draws) · K) passes over the text, without those for languages that
    have no neurons. With `out`, every shard of every language is kept there as soon as it is
    done, the same call goes on where it was interrupted, and `matrix.safetensors` is the result;
    processes with the same `out` share the work. With `ray`, actors read the pieces, on nodes that
    share `out`.

    >>> two = ["de", "zh"]
    >>> matrix = interp.perplexity_matrix(
    ...     model, neurons.languages_only(two), text.languages_only(two), n_draws=1, progress=False
    ... )
    >>> matrix.diagonal().largest_in_row
    ('de', 'zh')
    """
    if n_draws < 0:
        raise ValueError(f"n_draws is {n_draws}: draw 0 random sets (no control) or more.")
    if corpora.n_shards < 2:
        raise ValueError("An interval needs 2 shards or more: read the corpora with n_shards=20.")
    edits = _by_language(edit, selection.languages)
    generator = generator or torch.Generator().manual_seed(0)
    draws = [selection.random_like(generator, exclude=selection.union()) for _ in range(n_draws)]
    under: dict[str, Changes] = {NOTHING: None}
    for number, drawn in enumerate([selection, *draws]):
        for code in selection.languages:
            name = f"random {number}: {code}" if number else code
            some = bool(drawn[code].any())
            under[name] = drawn.change(code, edits[code], tokens) if some else None
    named = check_under(model, under)
    check_text(model, corpora)
    sizes = selection.counts()
    if empty := [code for code, size in sizes.items() if size == 0]:
        warnings.warn(
            f"The selection has no neurons for {', '.join(empty)}: those rows are exactly zero.",
            stacklevel=2,
        )
    every = read_all(model, corpora, named, out, tokens_per_batch, progress, ray)
    n_off = len(selection.languages)
    matrix = PerplexityMatrix(
        losses=Losses(
            nats=every.nats[:, : n_off + 1].clone(),
            tokens=every.tokens,
            bytes=every.bytes,
            interventions=every.interventions[: n_off + 1],
            languages=every.languages,
        ),
        random=rearrange(
            every.nats[:, n_off + 1 :],
            "shard (draw off) read -> shard draw off read",
            draw=n_draws,
            off=n_off,
        ).clone(),
        neurons=tuple(sizes[code] for code in selection.languages),
        edit=tuple(edits[code].name for code in selection.languages),
    )
    if out is not None:
        matrix.save(Path(out) / "matrix.safetensors", read_plan(Path(out)))
    return matrix


# ---------------------------------------------------------------- statistics


def own_minus_others(
    square: Float64[Tensor, "*batch off read"],
) -> Float64[Tensor, "*batch language"]:
    """Each language's own cell less the mean of the other cells of its row."""
    own = square.diagonal(dim1=-2, dim2=-1)
    return own - (reduce(square, "... off read -> ... off", "sum") - own) / (square.shape[-1] - 1)


def _own_minus_others(total: dict[str, Tensor]) -> Float64[Tensor, " language"]:
    return own_minus_others(total["more"] / total["tokens"])


def _relabeling_test(
    square: Float64[Tensor, "language language"], generator: torch.Generator
) -> PermutationTest:
    """Mean of own minus others, against the same with the rows' languages dealt out anew."""
    n_languages = len(square)
    rows = torch.arange(n_languages)
    exact = math.factorial(n_languages) <= _MOST_RELABELINGS
    if exact:  # the first is the order as it is
        orders = torch.tensor(list(itertools.permutations(range(n_languages))))
    else:
        noise = torch.rand(_MOST_RELABELINGS, n_languages, generator=generator)
        orders = torch.cat([rearrange(rows, "row -> 1 row"), noise.argsort(dim=1)])
    own = square[rows, orders]
    others = (square.sum(dim=1) - own) / (n_languages - 1)
    arranged = (own - others).mean(dim=1)
    strength = arranged.abs()
    rounding = 1e-9 * square.abs().max()  # equal sums of large terms count as equal
    return PermutationTest(
        arranged[0].item(),
        (strength >= strength[0] - rounding).double().mean().item(),
        (strength >= strength.max() - rounding).double().mean().item(),
        len(orders),
        exact,
    )


def _named(codes: Sequence[str], chosen: Bool[Tensor, " language"]) -> tuple[str, ...]:
    return tuple(code for code, yes in zip(codes, chosen.tolist(), strict=True) if yes)


# ---------------------------------------------------------------- at the door


def _by_language(edit: Edit | Mapping[str, Edit], languages: Sequence[str]) -> dict[str, Edit]:
    if isinstance(edit, Edit):
        return dict.fromkeys(languages, edit)
    if missing := [code for code in languages if code not in edit]:
        raise ValueError(
            f"There is no edit for {', '.join(missing)}: give one for every language of the "
            "selection, or a single one for all."
        )
    return {code: edit[code] for code in languages}
