"""How the neurons that a method chose are judged on a model: what they cost, what they switch.

All methods read the same text and write from the same seeds, so that they differ by their neurons
alone; what does not depend on the method is done once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from tqdm.auto import tqdm

import interp
from experiments.study import Study
from interp.evaluations.languages_written import Guard, language_rates
from interp.evaluations.losses import Losses, losses_under
from interp.evaluations.perplexity import own_minus_others
from interp.evaluations.writing import generate_texts
from interp.inference.intervals import Estimate, jackknife_shards, mean_over_examples, wilson
from interp.interventions.edits import difference_of_means
from interp.models.neuron_model import Hook
from interp.results.frames import tidy
from interp.results.words import NOTHING

Text = Mapping[str, Sequence[str]]
Chosen = Mapping[str, interp.NeuronSelection]
"""Name of the method → what it chose."""

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of a part of the text, for stability against its amount."""


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval; NaN left out."""
    known = torch.tensor([each for each in values if not math.isnan(each)], dtype=torch.float64)
    if len(known) < 2:
        return (known.mean().item(), math.nan, math.nan)
    found = mean_over_examples(known)
    return found.value.item(), found.low.item(), found.high.item()


# ---------------------------------------------------------------- what is chosen from


@dataclass(frozen=True)
class Statistics:
    """What was measured on some text."""

    firing: interp.FiringStats
    moments: interp.ActivationMoments
    sentence_means: interp.SentenceMeans

    @property
    def tokens(self) -> int:
        """Per language, mean."""
        return round(self.moments.tokens.double().mean().item())

    def __add__(self, other: "Statistics") -> "Statistics":
        """Of both texts, which must be different."""
        mine, theirs = self.moments, other.moments
        return Statistics(
            self.firing.merge(other.firing),
            replace(mine, sums=mine.sums + theirs.sums, tokens=mine.tokens + theirs.tokens),
            replace(
                self.sentence_means,
                pieces=self.sentence_means.pieces + other.sentence_means.pieces,
                labels=torch.cat([self.sentence_means.labels, other.sentence_means.labels]),
            ),
        )


def grown(model: interp.NeuronModel, text: Text, study: Study, folder: Path) -> list[Statistics]:
    """Statistics of an eighth of the text, a quarter, half, and all; nothing is read twice."""
    found: list[Statistics] = []
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
            progress=False,
        )
        here = folder / str(number)
        keep = interp.Keep(moments=True, sentence_means=("pre", "post"))
        run = interp.collect(model, sentences, here, keep=keep, progress=False)
        new = Statistics(run.firing, run.moments, run.sentence_means)
        found.append(found[-1] + new if found else new)
    return found


# ---------------------------------------------------------------- switched off


@dataclass(frozen=True)
class Effects:
    """Nats that text costs with the neurons of each method and language off."""

    off: Float64[Tensor, "shard method off read"]
    """With them off."""

    random: Float64[Tensor, "shard method read"]
    """With as many random neurons per layer in the place of those of the language read."""

    nothing: Float64[Tensor, "shard read"]
    """With the model as it is."""

    tokens: Int64[Tensor, "shard read"]
    """Tokens predicted."""

    chosen: Chosen
    """What each method chose, in the order of the method axis."""

    languages: tuple[str, ...]
    """ISO codes, along off and read."""

    def matrix(self, name: str) -> interp.evaluations.PerplexityMatrix:
        """Off by read, of one method, with no random neurons."""
        mine = self.off[:, self._place(name)]
        nats = torch.cat([rearrange(self.nothing, "shard read -> shard 1 read"), mine], dim=1)
        n_shards, n_languages = self.nothing.shape
        names = (NOTHING, *self.languages)
        losses = Losses(
            nats=nats,
            tokens=self.tokens,
            bytes=torch.ones_like(self.tokens),
            interventions=names,
            languages=self.languages,
        )
        none = nats.new_zeros(n_shards, 0, n_languages, n_languages)
        sizes = tuple(self.chosen[name].counts().values())
        return interp.evaluations.PerplexityMatrix(
            losses=losses, random=none, neurons=sizes, edit=("deactivate",) * n_languages
        )

    def selectivity(self, name: str) -> Estimate:
        """Rise of the own loss less the mean rise of the others', mean over languages."""
        return self._mean(self._more(name))

    def apart(self, one: str, other: str) -> Estimate:
        """How much more selective one method is than another, on the same text."""
        return self._mean(self._more(one) - self._more(other))

    def row(self, name: str, control: str) -> dict[str, float]:
        """For the table of methods; the increases are means over languages."""
        found, matrix = self.selectivity(name), self.matrix(name)
        # A method that finds neurons for one language alone has none to tell it from.
        test = matrix.diagonal() if sum(size > 0 for size in matrix.neurons) > 1 else None
        own, random = (
            self._mean_own(nats)
            for nats in (
                einsum(self.off[:, self._place(name)], "shard read read -> shard read"),
                self.random[:, self._place(name)],
            )
        )
        return {
            "selectivity": found.value.item(),
            "selectivity_low": found.low.item(),
            "selectivity_high": found.high.item(),
            "selectivity_control": self.selectivity(control).value.item(),
            "own": own,
            "others": own - found.value.item(),
            "random_per_layer": random,
            "p": math.nan if test is None else test.test.p_value,
            "largest_in_row": 0 if test is None else len(test.largest_in_row),
        }

    def by_language(self) -> pd.DataFrame:
        """A row per method and language: how many, and nats per token more with them off."""
        more = torch.stack([self.matrix(name).increase.value for name in self.chosen])
        own = einsum(more, "method read read -> method read")
        others = own - own_minus_others(more)
        nothing = rearrange(self.nothing, "shard read -> shard 1 read")
        random = (self.random - nothing).sum(dim=0) / self.tokens.sum(dim=0)
        sizes = torch.tensor([list(each.counts().values()) for each in self.chosen.values()])
        return tidy(
            {"method": self.chosen, "language": self.languages},
            {"neurons": sizes, "own": own, "others": others, "random_per_layer": random},
        )

    def _place(self, name: str) -> int:
        return list(self.chosen).index(name)

    def _more(self, name: str) -> Float64[Tensor, "shard off read"]:
        base = rearrange(self.nothing, "shard read -> shard 1 read")
        return self.off[:, self._place(name)] - base

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
) -> Effects:
    """Every language read with the neurons of every method and language off, one after the other.

    Random neurons are switched off for the language that is read alone, and the model as it is
    reads once for all methods: (n_languages + 1) · n_methods + 1 passes.
    """
    drawn = {
        name: each.random_like(generator, exclude=each.union()) for name, each in chosen.items()
    }
    codes, parts = reading.languages, []
    for code in tqdm(codes, desc="Reading", unit="language", disable=not progress or None):
        sets = [each[off] for each in chosen.values() for off in codes]
        sets += [each[code] for each in drawn.values()]
        under: dict[str, interp.Change | None] = {NOTHING: None}
        under |= {
            str(number): interp.Change(neurons, interp.deactivate) if neurons.any() else None
            for number, neurons in enumerate(sets)
        }
        here = replace(reading, rows={code: reading.rows[code]}, languages=(code,))
        parts.append(losses_under(model, here, under, progress=False))
    nats = torch.cat([part.nats for part in parts], dim=2)
    n = len(codes) * len(chosen)
    return Effects(
        off=rearrange(
            nats[:, 1 : n + 1],
            "shard (method off) read -> shard method off read",
            off=len(codes),
        ),
        random=nats[:, n + 1 :],
        nothing=nats[:, 0],
        tokens=torch.cat([part.tokens for part in parts], dim=1),
        chosen=chosen,
        languages=codes,
    )


# ---------------------------------------------------------------- pushed


@dataclass(frozen=True)
class Switching:
    """Whether texts written under a push are in its language, and whether they are good texts."""

    inside: Bool[Tensor, "method language text"]
    """In the language that was pushed towards; the first method is no edit at all."""

    good: Bool[Tensor, "method language text"]
    """And pass the guard of that language."""

    methods: tuple[str, ...]
    """Names along the method axis, the first of which is `NOTHING`."""

    languages: tuple[str, ...]
    """ISO codes."""

    def row(self, name: str) -> dict[str, float]:
        """For the table of methods: shares over all languages; Wilson's intervals."""
        mine, untouched = self.good[self.methods.index(name)], self.good[0]
        share = mine.double().mean().item()
        low, high = wilson(share, mine.numel())
        return {
            "switching": share,
            "switching_low": low,
            "switching_high": high,
            "switching_control": untouched.double().mean().item(),
            "in_language": self.inside[self.methods.index(name)].double().mean().item(),
        }

    def apart(self, one: str, other: str) -> Estimate:
        """How many more good texts, of those begun from the same seeds."""
        places = [self.methods.index(name) for name in (one, other)]
        more = self.good[places[0]].double() - self.good[places[1]].double()
        return mean_over_examples(rearrange(more, "language text -> (language text)"))

    def by_language(self) -> pd.DataFrame:
        """Shares of the texts, a row per method and language."""
        inside, good = (
            reduce(each.double(), "method language text -> method language", "mean")
            for each in (self.inside, self.good)
        )
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
    """Of the rows of a batch, the first n are pushed towards the first language, and so on.

    By what the chosen neurons give more in that language than on average in the others. The same as
    `intervene` for one language after the other, and a few times as fast: a step of writing costs
    little more for all languages than for one.
    """
    shifts = [
        difference_of_means(moments, code, strength, site="post").shift["post"] * chosen[code]
        for code in chosen.languages
    ]
    every = torch.stack(shifts)

    def hook_for(layer: int) -> Hook:
        added = repeat(every[:, layer], "language neuron -> (language text) 1 neuron", text=n)

        def push(output: Tensor, hook: object) -> Tensor:
            return output + added.to(output)

        return push

    touched = reduce(every != 0, "language layer neuron -> layer", "any").nonzero().flatten()
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
    progress: bool = True,
) -> Switching:
    """Texts from nothing, n for each method and language; all are judged together."""
    codes = tuple(guards)
    methods: dict[str, interp.NeuronSelection | None] = {NOTHING: None, **chosen}
    texts: list[str] = []
    for each in tqdm(methods.values(), desc="Writing", unit="method", disable=not progress or None):
        edit = nullcontext()
        if each is not None:
            edit = pushed_by_rows(model, moments, each, strength, n)
        with edit:
            written = generate_texts(
                model,
                [""] * len(codes),
                n,
                max_new_tokens=max_new_tokens,
                seed=seed,
                tokens_per_batch=n * len(codes) * model.max_length,  # one batch, in this order
                progress=False,
            )
        texts += written[NOTHING].texts
    judged = language_rates(texts, codes, guards, model, progress=False)
    wanted = [code for _ in methods for code in codes for _ in range(n)]
    inside = torch.tensor(
        [is_in == want for is_in, want in zip(judged.found, wanted, strict=True)], dtype=torch.bool
    )
    inside, good = (
        rearrange(
            each,
            "(method language text) -> method language text",
            method=len(methods),
            language=len(codes),
        )
        for each in (inside, inside & judged.passes)
    )
    return Switching(inside, good, tuple(methods), codes)
