"""Two judgments of the neurons that methods select: their effect on losses, and on writing.

All methods read the same text and write from the same seeds, so they differ by their neurons alone.
Work that does not depend on the method is done once.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd
import torch
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from tqdm.auto import tqdm

import interp
from experiments.recover_planted import ALL_KEPT
from experiments.study import Study
from interp import Estimate
from interp.counting.pieces import grid_path
from interp.evaluations import Guard
from interp.evaluations.dominance import own_minus_others
from interp.inference.crossed import share_difference
from interp.inference.intervals import jackknife_shards, mean_over_examples, wilson
from interp.models.as_transformer_lens import Hook
from interp.results.artifacts import hash_of, write_text
from interp.results.frames import interval_columns, tidy
from interp.results.words import NOTHING, Bos
from interp.runs.folder import begin

Text = Mapping[str, Sequence[str]]
Chosen = Mapping[str, interp.NeuronSelection]
"""Name of the method → its selection."""

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the text that stability is measured on."""


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval, without NaN values."""
    known = torch.tensor([x for x in values if not math.isnan(x)], dtype=torch.float64)
    if len(known) < 2:
        return (known.mean().item(), math.nan, math.nan)
    mean = mean_over_examples(known)
    return mean.value.item(), mean.low.item(), mean.high.item()


# ---------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Statistics:
    """Statistics of some text, from which methods select."""

    firing: interp.FiringStats
    moments: interp.ActivationMoments
    sentence_means: interp.SentenceMeans
    sign_cases: interp.counting.SignCases
    negative_side: interp.counting.NegativeSide
    histograms: interp.counting.Histograms
    loss_effects: interp.counting.LossEffects

    @staticmethod
    def of(run: interp.Run) -> "Statistics":
        return Statistics(**{field.name: getattr(run, field.name) for field in fields(Statistics)})

    @property
    def tokens(self) -> int:
        """Tokens per language, mean."""
        return round(self.moments.tokens.double().mean().item())

    def __add__(self, other: "Statistics") -> "Statistics":
        """Of both texts, which must not overlap."""
        pieces = self.sentence_means.pieces + other.sentence_means.pieces
        labels = torch.cat([self.sentence_means.labels, other.sentence_means.labels])
        merged = {
            field.name: getattr(self, field.name).merge(getattr(other, field.name))
            for field in fields(Statistics)
            if field.name != "sentence_means"
        }
        means = replace(self.sentence_means, pieces=pieces, labels=labels)
        return Statistics(sentence_means=means, **merged)


def grown(model: interp.NeuronModel, text: Text, study: Study, folder: Path) -> list[Statistics]:
    """Statistics of an eighth of the text, a quarter, half, and all; nothing is read twice."""
    statistics: list[Statistics] = []
    for number, (start, stop) in enumerate(zip((0.0, *SHARES), SHARES, strict=False)):
        piece = {
            code: lines[round(start * len(lines)) : round(stop * len(lines))]
            for code, lines in text.items()
        }
        sentences = interp.read_sentences(
            piece,
            study.languages,
            model,
            sentences=None if study.tokens is None else int((stop - start) * study.tokens / 30),
            n_shards=1,
            bos=study.bos,
            progress=False,
        )
        out = folder / str(number)
        if number and not grid_path(out).exists():  # histograms are added, so on the same bins
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(grid_path(folder / "0"), grid_path(out))
        new = Statistics.of(interp.collect(model, sentences, out, keep=ALL_KEPT, progress=False))
        statistics.append(statistics[-1] + new if statistics else new)
    return statistics


# ---------------------------------------------------------------- switching off


@dataclass(frozen=True)
class Effects:
    """Loss of text, in nats, with the neurons of each method and language off."""

    off: Float64[Tensor, "shard method off read"]
    """With the selected neurons off."""

    random: Float64[Tensor, "shard method read"]
    """With a random set, of the same size per layer as that of the language read, off."""

    nothing: Float64[Tensor, "shard read"]
    """With nothing off."""

    tokens: Int64[Tensor, "shard read"]
    """Tokens predicted."""

    chosen: Chosen
    """Selections, in the order of the method axis."""

    languages: tuple[str, ...]
    """ISO codes, along off and read."""

    def matrix(self, name: str) -> interp.evaluations.PerplexityMatrix:
        """Off by read, of one method, without random neurons."""
        off = self.off[:, self._index(name)]
        nats = torch.cat([rearrange(self.nothing, "shard read -> shard 1 read"), off], dim=1)
        n_shards, n_languages = self.nothing.shape
        losses = interp.evaluations.Losses(
            nats=nats,
            tokens=self.tokens,
            bytes=torch.ones_like(self.tokens),
            interventions=(NOTHING, *self.languages),
            languages=self.languages,
        )
        none = nats.new_zeros(n_shards, 0, n_languages, n_languages)
        sizes = tuple(self.chosen[name].counts().values())
        return interp.evaluations.PerplexityMatrix(
            losses=losses, random=none, neurons=sizes, edit=("deactivate",) * n_languages
        )

    def selectivity(self, name: str) -> Estimate:
        """Rise of the own loss minus the mean rise of the others, mean over languages."""
        return self._mean(self._more(name))

    def over_languages(self, name: str) -> Float64[Tensor, " language"]:
        """The same for each language."""
        return own_minus_others(self.matrix(name).increase.value)

    def difference(self, one: str, other: str) -> Estimate:
        """How much more selective one method is than another, paired by language."""
        return mean_over_examples(self.over_languages(one) - self.over_languages(other))

    def row(self, name: str, control: str) -> dict[str, float]:
        """For the table of methods; the increases are means over languages."""
        selectivity, matrix = self.selectivity(name), self.matrix(name)
        # A method that selects neurons for one language alone cannot be tested against others.
        test = matrix.diagonal() if sum(size > 0 for size in matrix.neurons) > 1 else None
        off, random = self.off[:, self._index(name)], self.random[:, self._index(name)]
        own = self._mean_own(einsum(off, "shard read read -> shard read"))
        return {
            **{name: x.item() for name, x in interval_columns("selectivity", selectivity).items()},
            "selectivity_control": self.selectivity(control).value.item(),
            "own": own,
            "others": own - selectivity.value.item(),
            "random_per_layer": self._mean_own(random),
            "p": math.nan if test is None else test.test.p_value,
            "largest_in_row": 0 if test is None else len(test.largest_in_row),
        }

    def by_language(self) -> pd.DataFrame:
        """A row per method and language: neurons, and extra nats per token with them off."""
        more = torch.stack([self.matrix(name).increase.value for name in self.chosen])
        own = einsum(more, "method read read -> method read")
        others = own - own_minus_others(more)
        nothing = rearrange(self.nothing, "shard read -> shard 1 read")
        random = (self.random - nothing).sum(dim=0) / self.tokens.sum(dim=0)
        sizes = torch.tensor([[*neurons.counts().values()] for neurons in self.chosen.values()])
        return tidy(
            {"method": self.chosen, "language": self.languages},
            {"neurons": sizes, "own": own, "others": others, "random_per_layer": random},
        )

    def _index(self, name: str) -> int:
        return list(self.chosen).index(name)

    def _more(self, name: str) -> Float64[Tensor, "shard off read"]:
        base = rearrange(self.nothing, "shard read -> shard 1 read")
        return self.off[:, self._index(name)] - base

    def _mean(self, more: Float64[Tensor, "shard off read"]) -> Estimate:
        def own_less_others(total: dict[str, Tensor]) -> Tensor:
            return own_minus_others(total["more"] / total["tokens"]).mean()

        return jackknife_shards({"more": more, "tokens": self.tokens}, own_less_others)

    def _mean_own(self, nats: Float64[Tensor, "shard read"]) -> float:
        return ((nats - self.nothing).sum(dim=0) / self.tokens.sum(dim=0)).mean().item()


def effects(
    model: interp.NeuronModel,
    chosen: Chosen,
    reading: interp.Corpora,
    generator: torch.Generator,
    progress: bool = True,
    out: Path | None = None,
) -> Effects:
    """Every language read with the neurons of every method and language off in turn.

    Random neurons are off only for the language that is read, and the unchanged model reads once
    for all methods: (n_languages + 1) · n_methods + 1 passes. With `out`, the same call resumes.
    """
    drawn = [neurons.random_like(generator, exclude=neurons.union()) for neurons in chosen.values()]
    codes, parts = reading.languages, []
    for code in tqdm(codes, desc="Reading", unit="language", disable=not progress or None):
        sets = [selection[off] for selection in chosen.values() for off in codes]
        sets += [selection[code] for selection in drawn]
        under: dict[str, interp.Change | None] = {NOTHING: None}
        under |= {
            str(number): interp.Change(neurons, interp.deactivate) if neurons.any() else None
            for number, neurons in enumerate(sets)
        }
        text = replace(reading, rows={code: reading.rows[code]}, languages=(code,))
        folder = None if out is None else out / code
        parts.append(
            interp.evaluations.losses_under(model, text, under, out=folder, progress=False)
        )
    nats = torch.cat([part.nats for part in parts], dim=2)
    n = len(codes) * len(chosen)
    return Effects(
        off=rearrange(
            nats[:, 1 : n + 1], "shard (method off) read -> shard method off read", off=len(codes)
        ),
        random=nats[:, n + 1 :],
        nothing=nats[:, 0],
        tokens=torch.cat([part.tokens for part in parts], dim=1),
        chosen=chosen,
        languages=codes,
    )


# ---------------------------------------------------------------- writing under a push


@dataclass(frozen=True)
class Switching:
    """Whether texts written under a push are in its language, and whether they are good."""

    inside: Bool[Tensor, "method language text"]
    """In the language pushed towards; the first method is no edit."""

    good: Bool[Tensor, "method language text"]
    """In that language, and passing its guard."""

    methods: tuple[str, ...]
    """Names along the method axis; the first is `NOTHING`."""

    languages: tuple[str, ...]
    """ISO codes."""

    def row(self, name: str) -> dict[str, float]:
        """For the table of methods: shares over all languages, with Wilson intervals."""
        method = self.methods.index(name)
        share = self.good[method].double().mean().item()
        low, high = wilson(share, self.good[method].numel())
        return {
            "switching": share,
            "switching_low": low,
            "switching_high": high,
            "switching_control": self.good[0].double().mean().item(),
            "in_language": self.inside[method].double().mean().item(),
        }

    def difference(self, one: str, other: str) -> Estimate:
        """How many more texts are good, paired by seed; a seed is one text in every language."""
        a, b = (self.good[self.methods.index(name)].double() for name in (one, other))
        language, seed = torch.ones_like(a).nonzero().unbind(dim=1)
        one_flat, other_flat = (rearrange(x, "language text -> (language text)") for x in (a, b))
        return share_difference(one_flat, other_flat, language, seed)

    def by_language(self) -> pd.DataFrame:
        """Shares of the texts, a row per method and language."""
        inside, good = (hits.double().mean(dim=2) for hits in (self.inside, self.good))
        axes = {"method": self.methods, "language": self.languages}
        return tidy(axes, {"in_language": inside, "good": good})


@contextmanager
def pushed_by_rows(
    model: interp.NeuronModel,
    moments: interp.ActivationMoments,
    chosen: interp.NeuronSelection,
    strength: float,
    n: int,
) -> Iterator[None]:
    """The first n rows of a batch are pushed towards the first language, the next n towards the
    second, and so on, by the chosen neurons' difference of means.

    Equals `intervene` for one language after the other, but is a few times faster: a step of
    writing costs little more for all languages than for one.
    """

    def shift(code: str) -> Float[Tensor, "layer neuron"]:
        more = interp.difference_of_means(moments, code, strength, site="post").shift["post"]
        return more * chosen[code]

    shifts = torch.stack([shift(code) for code in chosen.languages])

    def hook_for(layer: int) -> Hook:
        added = repeat(shifts[:, layer], "language neuron -> (language text) 1 neuron", text=n)

        def push(output: Tensor, hook: object) -> Tensor:
            return output + added.to(output)

        return push

    touched = reduce(shifts != 0, "language layer neuron -> layer", "any").nonzero().flatten()
    sites = [(model.site(layer, "post"), hook_for(layer)) for layer in touched.tolist()]
    with model.hooks(sites):
        yield


def switching(
    model: interp.NeuronModel,
    chosen: Chosen,
    moments: interp.ActivationMoments,
    guards: Mapping[str, Guard],
    *,
    strength: float,
    n: int,
    max_new_tokens: int,
    seed: int,
    bos: Bos = "auto",
    out: Path | None = None,
) -> Switching:
    """Unconditional samples, n for each method and language, judged together.

    With `out`, what a method wrote is kept, and the same call resumes.
    """
    if out is not None:
        plan = {name: hash_of(selection.mask) for name, selection in chosen.items()}
        plan |= {"model": model.identity, "moments": hash_of(moments.sums), "n": n}
        plan |= {"strength": strength, "max_new_tokens": max_new_tokens, "seed": seed, "bos": bos}
        begin(out, plan)
    codes = tuple(guards)
    methods: dict[str, interp.NeuronSelection | None] = {NOTHING: None, **chosen}
    texts: list[str] = []
    selections = tqdm(methods.values(), desc="Writing", unit="method", disable=None)
    for number, selection in enumerate(selections):
        kept = None if out is None else out / f"{number}.json"
        if kept is not None and kept.exists():
            texts += json.loads(kept.read_text(encoding="utf-8"))
            continue
        push = nullcontext()
        if selection is not None:
            push = pushed_by_rows(model, moments, selection, strength, n)
        with push:
            written = interp.evaluations.generate_texts(
                model,
                [""] * len(codes),
                n,
                max_new_tokens=max_new_tokens,
                seed=seed,
                bos=bos,
                tokens_per_batch=n * len(codes) * model.max_length,  # one batch, in this order
                progress=False,
            )
        if kept is not None:
            write_text(kept, json.dumps(written[NOTHING].texts, ensure_ascii=False))
        texts += written[NOTHING].texts
    judged = interp.evaluations.language_rates(texts, codes, guards, model, bos=bos, progress=False)
    targets = [code for _ in methods for code in codes for _ in range(n)]
    hits = [code == target for code, target in zip(judged.found, targets, strict=True)]
    inside = torch.tensor(hits, dtype=torch.bool)
    axes = {"language": len(codes), "text": n}
    inside, good = (
        rearrange(x, "(method language text) -> method language text", **axes)
        for x in (inside, inside & judged.passes)
    )
    return Switching(inside, good, tuple(methods), codes)
