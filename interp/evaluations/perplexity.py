"""Turn language A's neurons off, read language B: how much worse is the text predicted?

Differences are paired: the same shards of documents, with and without the edit. Their intervals
are over documents: they hold for other text of the same kind, not for other random neurons.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor

from interp.evaluations.dominance import DiagonalDominance, dominance
from interp.evaluations.losses import (
    Losses,
    check_text,
    nats_per_token,
    read_all,
)
from interp.inference.intervals import Estimate
from interp.interventions.edits import Edit, deactivate
from interp.interventions.under import Changes, Under, check_under
from interp.models.any_model import AnyModel, as_model
from interp.results import artifacts, terminal
from interp.results.display import Cells, Shaded, counted, listed
from interp.results.frames import interval_columns, with_origin
from interp.results.saved import Saved
from interp.results.words import NOTHING, Tokens
from interp.runs.folder import read_plan
from interp.runs.ray import ActorPool, Ray
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora
from interp.text.languages import worded


@dataclass(frozen=True, kw_only=True)
class PerplexityMatrix(Saved):
    """Loss on language B with language A's neurons off, and with a random control of the same size.

    >>> german, text_in_german = neurons.languages_only(["de"]), text.languages_only(["de"])
    >>> interp.perplexity_matrix(model, german, text_in_german, n_draws=1, progress=False)
    PerplexityMatrix(off: de; read: de; 1 random draw)
    """

    kind = "PerplexityMatrix"
    made_by = "interp.perplexity_matrix(model, selection, corpora, out=...)"

    losses: Losses
    """With nothing changed, then with each language's neurons of the selection changed."""

    random: Float64[Tensor, "shard draw off read"]
    """Nats with random neurons instead of each language's, as many in every layer, drawn from those
    of no language; empty if n_draws was 0."""

    neurons: tuple[int, ...]
    """Number of neurons of each language; zero: its row equals that of the untouched model."""

    rate_matched: Float64[Tensor, "shard off read"] | None = None
    """Nats with neurons that fire nearly as often instead of each language's, as many in every
    layer; None: no rates were given."""

    edit: tuple[str, ...]
    """What is done to each language's neurons, such as "deactivate"."""

    beside: Losses | None = None
    """With nothing changed, then under the interventions of `beside`; None: there were none."""

    neurons_of: str = ""
    """The model that the neurons were found in, if it is another (`NeuronSelection.on`)."""

    def __post_init__(self) -> None:
        shards, off, read = self.losses.nats.shape
        n_shards, _, n_off, n_read = self.random.shape
        if (n_shards, n_off + 1, n_read) != (shards, off, read) or not (
            len(self.neurons) == len(self.edit) == n_off
        ):
            raise ValueError(
                f"The losses have {shards} shards, {off - 1} sets of neurons and {read} "
                f"languages, the random controls {n_shards}, {n_off} and {n_read}, and "
                f"{len(self.neurons)} sizes and {len(self.edit)} edits are given: these must agree."
            )

    def __repr__(self) -> str:
        return (
            f"PerplexityMatrix(off: {listed(self.off)}; read: {listed(self.languages)}; "
            f"{counted(self.random.shape[1], 'random draw')})"
        )

    def _cells(self) -> Cells:
        """Increases with intervals, and the random control on each row's own language."""
        more, control = self.increase, self.control
        most = more.value.abs().nan_to_num().max().item() or 1.0
        rows: list[list[str | Shaded]] = []
        for row, code in enumerate(self.off):
            cells = [
                Shaded(_cell(more, row, column), more.value[row, column].item() / most)
                for column in range(len(self.languages))
            ]
            own = self.languages.index(code) if code in self.languages else None
            random = "" if own is None else _cell(control, row, own)
            rows.append([code, f"{self.neurons[row]:,}", *cells, random])
        note = "increase over nothing off, in nats per token, with 95 % intervals"
        note += f"; neurons of another model, {self.neurons_of}" * bool(self.neurons_of)
        return Cells(["off", "neurons", *self.languages, "own, random neurons"], rows, note)

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
        """Increase over nothing changed, in nats per token: [off read], with 95 % intervals."""
        return nats_per_token(self.losses.nats[:, 1:] - self.losses.nats[:, :1], self.losses.tokens)

    @property
    def random_increase(self) -> Estimate:
        """The same for each draw of random neurons: [draw off read]."""
        return nats_per_token(self._random_more, self.losses.tokens)

    @property
    def control(self) -> Estimate:
        """The increase with random neurons, mean over draws: [off read]. NaN: no draws."""
        return nats_per_token(self._random_more.mean(dim=1), self.losses.tokens)

    @property
    def rate_control(self) -> Estimate:
        """The increase with neurons that fire nearly as often: [off read]. NaN: not measured."""
        return nats_per_token(self._rate_matched_more, self.losses.tokens)

    @property
    def rate_excess(self) -> Estimate:
        """The increase minus that of `rate_control`, paired: [off read]. NaN: not measured."""
        more = self.losses.nats[:, 1:] - self.losses.nats[:, :1]
        return nats_per_token(more - self._rate_matched_more, self.losses.tokens)

    @property
    def excess(self) -> Estimate:
        """The increase minus that of the control, paired: [off read]. NaN: there is no control."""
        more = self.losses.nats[:, 1:] - self.losses.nats[:, :1]
        return nats_per_token(more - self._random_more.mean(dim=1), self.losses.tokens)

    @property
    def _random_more(self) -> Float64[Tensor, "shard draw off read"]:
        return self.random - rearrange(self.losses.nats[:, 0], "shard read -> shard 1 1 read")

    @property
    def _rate_matched_more(self) -> Float64[Tensor, "shard off read"]:
        if self.rate_matched is None:
            return torch.full_like(self.losses.nats[:, 1:], math.nan)
        return self.rate_matched - self.losses.nats[:, :1]

    @property
    def compared(self) -> tuple[str, ...]:
        """The languages that have neurons and were read, which `diagonal` compares."""
        sizes = dict(zip(self.off, self.neurons, strict=True))
        return tuple(code for code in self.off if sizes[code] and code in self.languages)

    @property
    def _no_comparison(self) -> str:
        return worded(
            "Comparing the own language with others needs two languages or more that have neurons "
            f"and were read, not {len(self.compared)} ({', '.join(self.compared) or 'none'}).",
            self.languages,
        )

    def diagonal(self, generator: torch.Generator | None = None) -> DiagonalDominance:
        """Own language against others, among the languages that have neurons and were read.

        `generator` draws the relabelings if there are more than 7 languages; None: seed 0.
        """
        codes = self.compared
        if len(codes) < 2:
            raise ValueError(self._no_comparison)
        rows = [self.losses.interventions.index(code) for code in codes]
        columns = [self.languages.index(code) for code in codes]
        nats, tokens = self.losses.nats[:, :, columns], self.losses.tokens[:, columns]
        more = nats[:, rows] - nats[:, :1]
        return dominance(codes, more, tokens, generator or torch.Generator().manual_seed(0))

    def to_frame(self) -> pd.DataFrame:
        """One row per cell, the untouched model first; intervals in columns _low and _high.

        `random` is the increase with random neurons, `excess` what is beyond that; `rate_matched`
        and `rate_excess` are the same for neurons that fire nearly as often, if there are any.
        `neurons_of` names the model of the neurons, if it is another.
        """
        frame = self.losses.to_frame().rename(columns={"intervention": "off"})
        frame.insert(2, "own", frame["off"] == frame["read"])
        frame.insert(3, "neurons", [size for size in (0, *self.neurons) for _ in self.languages])
        controls = {"random": self.control, "excess": self.excess}
        if self.rate_matched is not None:
            controls |= {"rate_matched": self.rate_control, "rate_excess": self.rate_excess}
        for name, estimate in controls.items():
            for column, values in interval_columns(name, estimate).items():
                untouched = [math.nan] * len(self.languages)
                frame[column] = [*untouched, *values.flatten().tolist()]
        frame = with_origin(frame, self.neurons_of)
        if self.beside is None:
            return frame
        rows = self.beside.to_frame().rename(columns={"intervention": "off"}).assign(own=False)
        edited = rows.loc[rows["off"] != NOTHING]
        return pd.concat([frame.astype({"neurons": "Int64"}), edited])

    def table(self, width: int = 100) -> str:
        """For a terminal of `width` columns: increases, half-widths of their intervals, the
        control, and the test."""
        controls = {"random": self.control}
        if self.rate_matched is not None:
            controls["alike"] = self.rate_control
        rows, increase = [["off", "neurons", *self.languages, *controls]], self.increase
        for row, code in enumerate(self.off):
            half_widths = (increase.high - increase.low)[row] / 2
            cells = [
                f"{more:+.3f} ±{half:.3f}"
                for more, half in zip(increase.value[row], half_widths, strict=True)
            ]
            for control in controls.values():
                own = code in self.languages
                more = control.value[row, self.languages.index(code)].item() if own else math.nan
                cells.append("-" if math.isnan(more) else f"{more:+.3f}")
            rows.append([code, f"{self.neurons[row]:,}", *cells])
        head, random, alike = (
            worded(text, self.languages)
            for text in (
                "Increase in nats per token, a language's neurons off (± half of the 95 % "
                "interval):",
                "the same for as many random neurons in every layer, read on the own language",
                "alike: neurons of the same layers that fire nearly as often in the language",
            )
        )
        return "\n".join(
            [
                head,
                "",
                *terminal.table(rows, width),
                *[f"random: {random}, mean over draws"] * (self.random.shape[1] > 0),
                *[alike] * (self.rate_matched is not None),
                "",
                *(
                    (worded(line, self.languages) for line in self.diagonal().in_words)
                    if len(self.compared) > 1
                    else [self._no_comparison]
                ),
            ]
        )

    def _stored(self) -> dict[str, Any]:
        losses, beside = self.losses, self.beside
        return {
            "nats": losses.nats,
            "tokens": losses.tokens,
            "bytes": losses.bytes,
            "random": self.random,
            "neurons": torch.tensor(self.neurons, dtype=torch.int64),
            "off": self.off,
            "read": self.languages,
            "edit": self.edit,
            **({"neurons_of": self.neurons_of} if self.neurons_of else {}),
            **({} if self.rate_matched is None else {"rate_matched": self.rate_matched}),
        } | (
            {}
            if beside is None
            else {"beside": beside.interventions[1:], "beside_nats": beside.nats[:, 1:]}
        )

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
        beside = labels.get("beside")
        return PerplexityMatrix(
            losses=losses,
            random=tensors["random"],
            rate_matched=tensors.get("rate_matched"),
            neurons=tuple(tensors["neurons"].tolist()),
            edit=tuple(labels["edit"]),
            neurons_of=labels.get("neurons_of", ""),
            beside=_with_nothing(losses, tensors["beside_nats"], beside) if beside else None,
        )


def _with_nothing(
    losses: Losses, nats: Float64[Tensor, "shard off read"], names: Sequence[str]
) -> Losses:
    """Losses under other interventions, after those with nothing changed."""
    return Losses(
        nats=torch.cat([losses.nats[:, :1], nats], dim=1),
        tokens=losses.tokens,
        bytes=losses.bytes,
        interventions=(NOTHING, *names),
        languages=losses.languages,
    )


def _cell(estimate: Estimate, row: int, column: int) -> str:
    """Text of a table cell, value and half-width; empty: NaN."""
    value, high = estimate.value[row, column].item(), estimate.high[row, column].item()
    return "" if math.isnan(value) else f"{value:z.3f} ± {high - value:.3f}"


def perplexity_matrix(
    model: AnyModel,
    selection: NeuronSelection,
    corpora: Corpora,
    edit: Edit | Mapping[str, Edit] = deactivate,
    *,
    tokens: Tokens = "all",
    n_draws: int = 3,
    rate: Float[Tensor, "language layer neuron"] | None = None,
    generator: torch.Generator | None = None,
    beside: Under | None = None,
    out: Path | str | None = None,
    tokens_per_batch: int = 4096,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> PerplexityMatrix:
    """Switch each language's neurons off in turn, and read every language of the corpora.

    The languages read may differ from those of the selection; read held-out text, which the
    selection was not made from. `edit` is one for all, or one per language if it holds values, such
    as `{code: replace(moments, code) for code in selection.languages}`. Each of the `n_draws`
    random controls costs as much as the matrix; None for `generator`: seed 0. With `rate`, such as
    the `stats.rate` that the selection was made from, there is a control more: neurons that fire
    nearly as often. `beside` names other interventions to compare with, as changes or as hook
    functions of TransformerLens, such as `{"mine": [("blocks.3.mlp.hook_post", hook)]}`; with
    functions, `out` is refused.

    With K languages, this makes 1 + (1 + n_draws) · K passes over the text, K more with `rate`, and
    fewer if some languages have no neurons. With `out`, every shard of every language is saved
    there as soon as it is done, the same call resumes, and the result is in `matrix.safetensors`;
    processes with the same `out` share the work. With `ray`, actors read the pieces, on nodes that
    share `out`.

    >>> two = ["de", "zh"]
    >>> matrix = interp.perplexity_matrix(
    ...     model, neurons.languages_only(two), text.languages_only(two), n_draws=1, progress=False
    ... )
    >>> matrix.diagonal().largest_in_row
    ('de', 'zh')
    """
    model = as_model(model)
    if n_draws < 0:
        raise ValueError(f"n_draws is {n_draws}: give 0 (no control) or more.")
    if corpora.n_shards < 2:
        raise ValueError("An interval needs 2 shards or more: read the corpora with n_shards=20.")
    edits = _by_language(edit, selection.languages)
    generator = generator or torch.Generator().manual_seed(0)
    under = _under(_with_controls(selection, n_draws, rate, generator), edits, tokens)
    named = check_under(model, _joined(under, beside or {}))
    check_text(model, corpora)
    sizes = selection.counts()
    if empty := [code for code, size in sizes.items() if size == 0]:
        warnings.warn(
            f"The selection has no neurons for {', '.join(empty)}: those rows are exactly zero.",
            stacklevel=2,
        )
    losses = read_all(model, corpora, named, out, tokens_per_batch, progress, ray)
    n_off, n_under = len(selection.languages), len(under)
    after_random = 1 + n_off * (1 + n_draws)
    matrix = PerplexityMatrix(
        losses=Losses(
            nats=losses.nats[:, : n_off + 1].clone(),
            tokens=losses.tokens,
            bytes=losses.bytes,
            interventions=losses.interventions[: n_off + 1],
            languages=losses.languages,
        ),
        random=rearrange(
            losses.nats[:, n_off + 1 : after_random],
            "shard (draw off) read -> shard draw off read",
            draw=n_draws,
            off=n_off,
        ).clone(),
        rate_matched=None if rate is None else losses.nats[:, after_random:n_under].clone(),
        neurons=tuple(sizes[code] for code in selection.languages),
        edit=tuple(edits[code].name for code in selection.languages),
        neurons_of=selection.neurons_of,
        beside=_with_nothing(losses, losses.nats[:, n_under:], tuple(beside)) if beside else None,
    )
    if out is not None:
        matrix.save(Path(out) / "matrix.safetensors", read_plan(Path(out)))
    return matrix


def _under(
    selections: Mapping[str, NeuronSelection], edits: Mapping[str, Edit], tokens: Tokens
) -> dict[str, Changes]:
    """Nothing, then each selection's languages in turn; no change where there are no neurons."""
    under: dict[str, Changes] = {NOTHING: None}
    for begin, neurons in selections.items():
        for code in neurons.languages:
            change = neurons.change(code, edits[code], tokens) if neurons[code].any() else None
            under[f"{begin}{code}"] = change
    return under


def _with_controls(
    selection: NeuronSelection,
    n_draws: int,
    rate: Float[Tensor, "language layer neuron"] | None,
    generator: torch.Generator,
) -> dict[str, NeuronSelection]:
    """The selection and the sets that it is compared with, by how their names begin."""
    others = selection.union()
    sets = {"": selection}
    for number in range(n_draws):
        sets[f"random {number + 1}: "] = selection.random_like(generator, exclude=others)
    if rate is not None:
        sets["alike: "] = selection.random_like(generator, exclude=others, rate=rate)
    return sets


# ---------------------------------------------------------------- checks


def _joined(under: Under, beside: Under) -> Under:
    if taken := sorted(under.keys() & beside.keys()):
        raise ValueError(f"{', '.join(taken)} is a name of the matrix itself: give another.")
    return {**under, **beside}


def _by_language(edit: Edit | Mapping[str, Edit], languages: Sequence[str]) -> dict[str, Edit]:
    if isinstance(edit, Edit):
        return dict.fromkeys(languages, edit)
    if missing := [code for code in languages if code not in edit]:
        raise ValueError(
            f"There is no edit for {', '.join(missing)}: give one for every language of the "
            "selection, or a single one for all."
        )
    return {code: edit[code] for code in languages}
