"""Generate texts, detect their languages, and check that they are still text.

A language rate alone is easily reached: "Englisch" a hundred times over is German. So each rate
comes with a guard on length, repetition, and, under the untouched model, loss and word order.
Baselines: no edit; as many random units (`NeuronSelection.random_like`); a prompt that names the
language (`naming_prompt`); and a push of the residual stream in one layer
(`ResidualMeans.towards`).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interp.evaluations.judging import JUDGES, Judged, judge_texts
from interp.evaluations.rates import Rate, median, n_bytes, repetition, steering_score
from interp.evaluations.writing import generate_texts
from interp.interventions.under import Under
from interp.models.any_model import AnyModel, as_model
from interp.results.display import counted
from interp.results.saved import Saved
from interp.results.words import Bos
from interp.runs.jobs import pool_for, refuse_edited
from interp.runs.ray import ActorPool, Ray
from interp.text.labels import Tags, check_labels
from interp.text.language_id import (
    OTHER,
    UNDETERMINED,
    LanguageId,
    detect_language,
    detectable,
    variant,
)
from interp.text.tokens import Prompt

_MIN_TEXTS = 20  # natural texts needed to measure a bound that nearly all of them meet
_WITHOUT_ORDER = 0.05
"""Share of natural texts whose order counts as none. At 0.01, three in ten shuffled texts of 32
tokens pass in Babel's German and Chinese; at 0.05, fewer than one in ten in every language."""


@dataclass(frozen=True)
class Guard:
    """Bounds that a text must meet to count as text, not as noise in the right language.

    `natural_guard` measures them on natural text. The defaults hold for 99 % of pairs of news
    sentences in ten languages, and do not bound the loss.

    >>> interp.evaluations.Guard(min_bytes=40).max_repetition
    0.25
    """

    min_bytes: int = 24
    """Texts with fewer bytes of UTF-8 fail: 24 is four words, or eight Chinese characters."""

    max_repetition: float = 0.25
    """Texts that repeat themselves more fail; see `repetition`."""

    max_loss: float = math.inf
    """Texts with a higher loss under the untouched model fail; nats per token."""

    min_word_order: float = -math.inf
    """Texts whose words cost less to shuffle fail, since they stand in no order; nats per token."""

    natural: float = math.nan
    """Share of natural texts that pass, which is the most a good model can reach."""

    natural_loss: float = math.nan
    """Median loss of natural texts, to compare the median of generated ones with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedLanguages(Saved):
    """Language and quality of each text.

    >>> interp.evaluations.language_rates(["Der Zug fährt heute erst am Abend."], ["de", "fr"])
    GeneratedLanguages(1 text: de 1; 1 good)
    """

    kind = "GeneratedLanguages"
    made_by = "interp.evaluations.language_rates(texts, languages)"

    texts: tuple[str, ...]
    """The texts that were judged."""

    found: tuple[str, ...]
    """Detected language of each text, among all known languages, by its label if it has one alone;
    `und`: the text has no letters."""

    languages: tuple[str, ...]
    """The labels asked for; all others count as `other`."""

    characters: Int64[Tensor, " text"]
    """Length of each text."""

    tokens: Int64[Tensor, " text"]
    """Length of each text in tokens of the model that judged it; zero: no model did."""

    repetition: Float64[Tensor, " text"]
    """Share of repeated windows; see the function `repetition`."""

    loss: Float64[Tensor, " text"]
    """Nats per token under the untouched model, without the prompt; NaN: no model judged the text,
    or it has no token to judge."""

    word_order: Float64[Tensor, " text"]
    """Nats per token that shuffling the words of the text costs: near zero, they were in no order.
    NaN where the loss is."""

    passes: Bool[Tensor, " text"]
    """Whether the text passes the guard of its language, of one of its labels if it has several;
    False for languages not asked for."""

    unchecked: tuple[str, ...] = ()
    """Labels that the detector cannot recognize: their rates are unknown, not zero."""

    found_as: tuple[str, ...] = ()
    """What texts in each language are `found` as: labels that are given one tag share it. Empty:
    the label."""

    def __repr__(self) -> str:
        counts = {code: self.rate(code).count for code in (*self.languages, OTHER, UNDETERMINED)}
        by_code = ", ".join(f"{code} {count:,}" for code, count in counts.items() if count)
        texts = counted(len(self.texts), "text")
        good = f"{int(self.passes.sum()):,} good"
        good += f"; not checked: {', '.join(self.unchecked)}" if self.unchecked else ""
        return f"GeneratedLanguages({texts}: {by_code or 'none'}; {good})"

    @property
    def loss_per_byte(self) -> Float64[Tensor, " text"]:
        """Nats per byte of UTF-8, comparable across tokenizers."""
        size = torch.tensor([n_bytes(text) for text in self.texts], dtype=torch.float64)
        return self.loss * self.tokens / size

    def rate(self, language: str) -> Rate:
        """Share of the texts in the language, which may also be `other` or `und`; of no text if the
        language was not checked."""
        return Rate(int(self._in(language).sum()), self._n_checked(language))

    def good(self, language: str) -> Rate:
        """Share of the texts that are in the language and pass its guard: the number to report."""
        good = int((self._in(language) & self.passes).sum())
        return Rate(good, self._n_checked(language))

    def quality(self, language: str) -> Rate:
        """Of the texts in the language, the share that passes its guard."""
        matches = self._in(language)
        return Rate(int((matches & self.passes).sum()), int(matches.sum()))

    def steering_score(self, language: str) -> float:
        """Harmonic mean of control (`rate`) and `quality`; see the function `steering_score`."""
        quality = self.quality(language)
        if language in self.unchecked:
            return math.nan
        return steering_score(self.rate(language).value, quality.value if quality.of else 0.0)

    def to_frame(self) -> pd.DataFrame:
        """One row per language, `other` and `und` last; medians are over the texts in it."""
        rows = []
        for language in (*self.languages, OTHER, UNDETERMINED):
            rate, good, matches = self.rate(language), self.good(language), self._in(language)
            rows.append(
                {
                    "language": language,
                    "texts": rate.count,
                    "rate": rate.value,
                    **dict(zip(("rate_low", "rate_high"), rate.interval, strict=True)),
                    "good": good.value,
                    **dict(zip(("good_low", "good_high"), good.interval, strict=True)),
                    "characters": median(self.characters[matches].double()),
                    "tokens": median(self.tokens[matches].double()),
                    "repetition": median(self.repetition[matches]),
                    "loss": median(self.loss[matches]),
                    "loss_per_byte": median(self.loss_per_byte[matches]),
                    "word_order": median(self.word_order[matches]),
                }
            )
        return pd.DataFrame(rows)

    def texts_frame(self) -> pd.DataFrame:
        """One row per text."""
        return pd.DataFrame(
            {
                "text": self.texts,
                "language": self.found,
                "characters": self.characters.tolist(),
                "tokens": self.tokens.tolist(),
                "repetition": self.repetition.tolist(),
                "loss": self.loss.tolist(),
                "loss_per_byte": self.loss_per_byte.tolist(),
                "word_order": self.word_order.tolist(),
                "passes": self.passes.tolist(),
            }
        )

    def found_towards(self, language: str) -> tuple[str, ...]:
        """`found`, where texts in the language of this label have this label."""
        inside = zip(self.found, self._in(language).tolist(), strict=True)
        return tuple(language if is_in else code for code, is_in in inside)

    def _n_checked(self, language: str) -> int:
        return 0 if language in self.unchecked else len(self.texts)

    def _in(self, language: str) -> Bool[Tensor, " text"]:
        if language not in (*self.languages, OTHER, UNDETERMINED):
            raise ValueError(
                f"{language!r} is not in this result, which covers {', '.join(self.languages)}, "
                f"{OTHER} and {UNDETERMINED}."
            )
        called = dict(zip(self.languages, self.found_as or self.languages, strict=True))
        own = (*called.values(), UNDETERMINED)
        named = [code if code in own else OTHER for code in self.found]
        wanted = called.get(language, language)
        return torch.tensor([name == wanted for name in named], dtype=torch.bool)


def language_rates(
    texts: Sequence[str],
    languages: Sequence[str],
    guard: Guard | Mapping[str, Guard] | None = None,
    model: AnyModel | None = None,
    *,
    tags: Tags | None = None,
    langid: LanguageId | None = None,
    bos: Bos = "auto",
    tokens_per_batch: int = 4096,
    progress: bool = True,
    out: Path | str | None = None,
    ray: Ray | ActorPool | None = None,
) -> GeneratedLanguages:
    """Language and quality of any texts; loss and word order only if a model is given.

    All known languages compete equally, including those not asked for, and broken text is assigned
    to the language it resembles most. Of natural texts of 64 tokens, 99 % or more are identified
    correctly, of Indonesian ones 98 % (the rest as Malay). `guard`: one for all languages, or one
    per language; None: the defaults. `tags` gives labels a language; labels that the detector
    cannot recognize are `unchecked`, and `langid`, any function from texts to language tags,
    replaces it. With `ray`, actors measure the loss, on nodes that share
    `out`, where it is saved; the caller must give the same texts with the same `out`.

    >>> texts = ["Der Zug fährt heute erst am Abend.", "The train does not leave before tonight."]
    >>> rates = interp.evaluations.language_rates(texts, ["de", "fr"])
    >>> rates.found, rates.rate("de").value, rates.rate("other").value
    (('de', 'en'), 0.5, 0.5)
    """
    model = None if model is None else as_model(model)
    labels = check_labels(languages, tags)
    guards = _guards(guard, labels)
    if model is None and any(
        math.isfinite(bound)
        for bounds in guards.values()
        for bound in (bounds.max_loss, bounds.min_word_order)
    ):
        raise ValueError(
            "The guard bounds loss or word order: give the model to measure them with."
        )
    codes = detectable(labels, tags, langid)
    times = Counter(codes.values())
    called = {label: label if times[code] == 1 else code for label, code in codes.items()}
    by_code = {code: called[label] for label, code in codes.items()}
    tags_found = detect_language(texts, langid=langid)
    detected = [by_code.get(variant(tag, by_code), tag) for tag in tags_found]
    guards_of: dict[str, list[Guard]] = {}
    for label, name in called.items():
        guards_of.setdefault(name, []).append(guards[label])
    found_as = tuple(called.get(label, label) for label in labels)
    unknown = torch.full((len(texts),), math.nan, dtype=torch.float64)
    judged = Judged(torch.zeros(len(texts), dtype=torch.int64), unknown, unknown)
    if model is not None:
        judged = judge_texts(model, texts, bos, tokens_per_batch, progress, out, ray)
    repetitions = [repetition(text) for text in texts]
    passes = [
        any(
            n_bytes(text) >= guard.min_bytes
            and repeated <= guard.max_repetition
            and (nats <= guard.max_loss or model is None)
            and (order >= guard.min_word_order or model is None)
            for guard in guards_of.get(code, ())
        )
        for text, code, repeated, nats, order in zip(
            texts,
            detected,
            repetitions,
            judged.loss.tolist(),
            judged.word_order.tolist(),
            strict=True,
        )
    ]
    return GeneratedLanguages(
        texts=tuple(texts),
        found=tuple(detected),
        languages=labels,
        characters=torch.tensor([len(text) for text in texts], dtype=torch.int64),
        tokens=judged.tokens,
        repetition=torch.tensor(repetitions, dtype=torch.float64),
        loss=judged.loss,
        word_order=judged.word_order,
        passes=torch.tensor(passes, dtype=torch.bool),
        unchecked=tuple(label for label in labels if label not in codes),
        found_as=found_as if found_as != labels else (),
    )


def generated_languages(
    model: AnyModel,
    languages: Sequence[str],
    under: Under | None = None,
    guard: Guard | Mapping[str, Guard] | None = None,
    *,
    prompts: Sequence[Prompt] = ("",),
    n: int = 100,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    tags: Tags | None = None,
    langid: LanguageId | None = None,
    bos: Bos = "auto",
    tokens_per_batch: int = 4096,
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> dict[str, GeneratedLanguages]:
    """Generate texts under each intervention; judge them with the untouched model.

    Runs `generate_texts`, whose own result has prompts and seeds too, and then `language_rates`.

    >>> under = {"off": neurons.change("de", interp.deactivate)}
    >>> judged = interp.generated_languages(
    ...     model, ["de"], under, n=2, max_new_tokens=4, progress=False
    ... )
    >>> len(judged["off"].texts), judged["off"].rate("de").of
    (2, 2)
    """
    model = as_model(model)
    guards = _guards(guard, check_labels(languages, tags))
    refuse_edited(model, JUDGES)
    settings: dict[str, Any] = {"bos": bos, "progress": progress}
    settings |= {"tokens_per_batch": tokens_per_batch}
    with pool_for(model, ray) as pool:
        written = generate_texts(
            model,
            prompts,
            n,
            under,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            out=out,
            ray=pool,
            **settings,
        )
        settings |= {"tags": tags, "langid": langid, "ray": pool}
        judged = {}
        for index, (name, generated) in enumerate(written.items()):
            folder = None if out is None else Path(out) / "judged" / f"{index:02d}"
            judged[name] = language_rates(
                generated.texts, languages, guards, model, out=folder, **settings
            )
        return judged


def natural_guard(
    model: AnyModel,
    texts: Mapping[str, Sequence[str]],
    *,
    max_tokens: int = 64,
    quantile: float = 0.99,
    min_bytes: int = 24,
    bos: Bos = "auto",
    tokens_per_batch: int = 4096,
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> dict[str, Guard]:
    """A guard per language; its bound on the loss is a quantile over natural texts.

    The bound on repetition is the same quantile, but never stricter than the default: Chinese
    hardly repeats anything. 95 % of natural texts lose more than the bound on word order when their
    words are shuffled. Texts are cut to `max_tokens` tokens first: give the `max_new_tokens`
    of the texts to judge, since longer text repeats more and is predicted better. They should begin
    where documents or sentences do. Several hundred of them make good bounds. `out` and `ray` are
    those of `language_rates`, with a folder per language.

    >>> texts = {"de": [f"Im Jahr {year} war der Winter sehr kalt." for year in range(1900, 1930)]}
    >>> interp.evaluations.natural_guard(model, texts, progress=False)["de"].max_repetition
    0.25
    """
    model = as_model(model)
    if not 0 < quantile <= 1:
        raise ValueError(f"The quantile is {quantile}: give a share above 0, at most 1.")
    guards = {}
    for code, given in texts.items():
        if len(given) < _MIN_TEXTS:
            raise ValueError(
                f"{len(given)} texts in {code} are too few to measure a bound: give at least "
                f"{_MIN_TEXTS}, better several hundred."
            )
        cut = [model.decode(ids[:max_tokens]).rstrip("\ufffd") for ids in model.encode_batch(given)]
        judged = language_rates(
            cut,
            [code],
            None,
            model,
            bos=bos,
            tokens_per_batch=tokens_per_batch,
            progress=progress,
            out=None if out is None else Path(out) / code,
            ray=ray,
        )
        bounds = Guard(
            min_bytes=min_bytes,
            max_repetition=max(Guard.max_repetition, float(judged.repetition.quantile(quantile))),
            max_loss=float(judged.loss.nanquantile(quantile)),
            min_word_order=float(judged.word_order.nanquantile(_WITHOUT_ORDER)),
            natural_loss=median(judged.loss),
        )
        passes = torch.tensor([n_bytes(text) >= min_bytes for text in cut])
        passes &= judged.repetition <= bounds.max_repetition
        passes &= (judged.loss <= bounds.max_loss) & (judged.word_order >= bounds.min_word_order)
        guards[code] = replace(bounds, natural=float(passes.double().mean()))
    return guards


def _guards(
    given: Guard | Mapping[str, Guard] | None, languages: Sequence[str]
) -> dict[str, Guard]:
    """The guard of each language."""
    if given is None or isinstance(given, Guard):
        return dict.fromkeys(languages, given or Guard())
    if missing := [code for code in languages if code not in given]:
        raise ValueError(
            f"There is no guard for {', '.join(missing)}: measure it with natural_guard, or give "
            "Guard()."
        )
    return {code: given[code] for code in languages}
