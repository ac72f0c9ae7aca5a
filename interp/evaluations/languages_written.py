"""Let a model write, and say in which languages it wrote and whether what it wrote is still text.

A language rate alone can be had for nothing: "Englisch" a hundred times over is German. So each
rate stands beside a guard on length, repetition and loss under the untouched model. Controls: no
edit; as many random units (`NeuronSelection.random_like`); `naming_prompt`, which names the
language; and `ResidualMeans.towards`, a push of the residual stream in one layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interp.evaluations.rates import Rate, repetition
from interp.evaluations.writing import bar, generate_texts
from interp.interventions.under import Under
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.display import counted
from interp.results.saved import Saved
from interp.results.words import Start
from interp.runs.jobs import finish, folder_for, pool_for, refuse_edited
from interp.runs.ray import ActorPool, Job, Ray
from interp.text.language_id import OTHER, UNDETERMINED, detect_language
from interp.text.languages import check_languages
from interp.text.tokens import by_length, padded, start_ids

_ENOUGH = 20  # natural texts, for a bound that is to hold for nearly all of them
_JUDGES = "texts are judged by the untouched model, or the edit would praise itself"


@dataclass(frozen=True)
class Guard:
    """What a text must be like to count as text and not as noise in the right language.

    `natural_guard` measures the bounds on natural text. Those given here as defaults hold for
    99 % of pairs of news sentences in ten languages, and ask nothing of the loss.

    >>> interp.evaluations.Guard(min_bytes=40).max_repetition
    0.25
    """

    min_bytes: int = 24
    """Shorter texts fail (in UTF-8): four words, or eight Chinese characters."""

    max_repetition: float = 0.25
    """Texts that repeat more of themselves fail; see `repetition`."""

    max_loss: float = math.inf
    """Texts that the untouched model finds less likely fail; nats per token."""

    natural: float = math.nan
    """Share of the natural texts that pass, which is the most a good model can reach."""

    natural_loss: float = math.nan
    """Median loss of the natural texts, to hold the median of generated ones against."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedLanguages(Saved):
    """In which languages texts are, and how good each of them is.

    >>> interp.evaluations.language_rates(["Der Zug fährt heute erst am Abend."], ["de", "fr"])
    GeneratedLanguages(1 text: de 1; 1 good)
    """

    kind = "GeneratedLanguages"
    made_by = "interp.evaluations.language_rates(texts, languages)"

    texts: tuple[str, ...]
    """What was judged."""

    found: tuple[str, ...]
    """The language of each text among all languages known; `und` where there are no letters."""

    languages: tuple[str, ...]
    """The languages asked for; all others count as `other`."""

    characters: Int64[Tensor, " text"]
    """Length of each text."""

    tokens: Int64[Tensor, " text"]
    """Its length for the model that judged it; zero where none did."""

    repetition: Float64[Tensor, " text"]
    """See the function of that name."""

    loss: Float64[Tensor, " text"]
    """Nats per token under the untouched model, read without a prompt; NaN where none judged it,
    or there is no token to judge."""

    passes: Bool[Tensor, " text"]
    """Whether it passes the guard of its language; False for a language not asked for."""

    def __repr__(self) -> str:
        counts = {code: self.rate(code).count for code in (*self.languages, OTHER, UNDETERMINED)}
        found = ", ".join(f"{code} {count:,}" for code, count in counts.items() if count)
        texts = counted(len(self.texts), "text")
        return f"GeneratedLanguages({texts}: {found or 'none'}; {int(self.passes.sum()):,} good)"

    @property
    def loss_per_byte(self) -> Float64[Tensor, " text"]:
        """Nats per byte of UTF-8, which compares across tokenizers."""
        size = torch.tensor([_n_bytes(text) for text in self.texts], dtype=torch.float64)
        return self.loss * self.tokens / size

    def rate(self, language: str) -> Rate:
        """Share of the texts that are in the language; also of `other` and `und`."""
        return Rate(int(self._in(language).sum()), len(self.texts))

    def good(self, language: str) -> Rate:
        """Share of the texts that are in the language and pass its guard: the number to report."""
        return Rate(int((self._in(language) & self.passes).sum()), len(self.texts))

    def quality(self, language: str) -> Rate:
        """Of the texts in the language, the share that passes its guard."""
        mine = self._in(language)
        return Rate(int((mine & self.passes).sum()), int(mine.sum()))

    def steering_score(self, language: str) -> float:
        """Harmonic mean of control (`rate`) and quality (`quality`), as `steering_score` says."""
        quality = self.quality(language)
        return steering_score(self.rate(language).value, quality.value if quality.of else 0.0)

    def to_frame(self) -> pd.DataFrame:
        """One row per language, `other` and `und` last; medians are over its texts."""
        rows = []
        for language in (*self.languages, OTHER, UNDETERMINED):
            rate, good, mine = self.rate(language), self.good(language), self._in(language)
            rows.append(
                {
                    "language": language,
                    "texts": rate.count,
                    "rate": rate.value,
                    **dict(zip(("rate_low", "rate_high"), rate.interval, strict=True)),
                    "good": good.value,
                    **dict(zip(("good_low", "good_high"), good.interval, strict=True)),
                    "characters": _median(self.characters[mine].double()),
                    "tokens": _median(self.tokens[mine].double()),
                    "repetition": _median(self.repetition[mine]),
                    "loss": _median(self.loss[mine]),
                    "loss_per_byte": _median(self.loss_per_byte[mine]),
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
                "passes": self.passes.tolist(),
            }
        )

    def _in(self, language: str) -> Bool[Tensor, " text"]:
        if language not in (*self.languages, OTHER, UNDETERMINED):
            raise ValueError(
                f"{language!r} was not asked for; there are {', '.join(self.languages)}, {OTHER} "
                f"and {UNDETERMINED}."
            )
        own = (*self.languages, UNDETERMINED)
        named = [code if code in own else OTHER for code in self.found]
        return torch.tensor([name == language for name in named], dtype=torch.bool)


def steering_score(control: float, quality: float) -> float:
    """Harmonic mean of control and quality, 2 · control · quality / (control + quality).

    Control: share of texts in the language wanted. Quality: share of those that are still good
    (here: pass the guard). One: all texts are, and all are good. Zero: none is, or none is good.
    It is never above twice the smaller of the two. CLaS-Bench (2026) has a judge's rating of
    relevance for quality; a guard tells text from noise, and not whether it says anything true.

    >>> round(interp.evaluations.steering_score(control=0.9, quality=0.6), 3)
    0.72
    """
    for name, value in {"control": control, "quality": quality}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"The {name} is {value}: give a share, from 0 to 1.")
    return 2 * control * quality / (control + quality) if control + quality else 0.0


def language_rates(
    texts: Sequence[str],
    languages: Sequence[str],
    guard: Guard | Mapping[str, Guard] | None = None,
    model: NeuronModel | None = None,
    *,
    start: Start = "auto",
    tokens_per_batch: int = 4096,
    progress: bool = True,
    out: Path | str | None = None,
    ray: Ray | ActorPool | None = None,
) -> GeneratedLanguages:
    """Language and quality of texts, whoever wrote them; the loss only with a model.

    All languages compete, and none gets the benefit of the doubt, the ones asked for no more than
    others: broken text goes to whatever language it resembles most. Of natural text of 64 tokens,
    99 % or more is recognized so, of Indonesian 98 % (the rest is taken for Malay). `guard`: one
    for all languages, or one for each; None: the defaults. With `ray`, actors measure the loss, on
    nodes that share `out`, where it is kept; whoever calls sees to it that the texts are the same.

    >>> texts = ["Der Zug fährt heute erst am Abend.", "The train does not leave before tonight."]
    >>> found = interp.evaluations.language_rates(texts, ["de", "fr"])
    >>> found.found, found.rate("de").value, found.rate("other").value
    (('de', 'en'), 0.5, 0.5)
    """
    codes = check_languages(languages)
    guards = _guards(guard, codes)
    if model is None and any(math.isfinite(each.max_loss) for each in guards.values()):
        raise ValueError("The guard bounds the loss: give the model to measure it with.")
    found = detect_language(texts)
    tokens = torch.zeros(len(texts), dtype=torch.int64)
    loss = torch.full((len(texts),), math.nan, dtype=torch.float64)
    if model is not None:
        tokens, loss = _losses(model, texts, start, tokens_per_batch, progress, out, ray)
    repeated = [repetition(text) for text in texts]
    passes = [
        code in guards
        and _n_bytes(text) >= guards[code].min_bytes
        and again <= guards[code].max_repetition
        and (nats <= guards[code].max_loss or model is None)
        for text, code, again, nats in zip(texts, found, repeated, loss.tolist(), strict=True)
    ]
    return GeneratedLanguages(
        texts=tuple(texts),
        found=tuple(found),
        languages=codes,
        characters=torch.tensor([len(text) for text in texts], dtype=torch.int64),
        tokens=tokens,
        repetition=torch.tensor(repeated, dtype=torch.float64),
        loss=loss,
        passes=torch.tensor(passes, dtype=torch.bool),
    )


def generated_languages(
    model: NeuronModel,
    languages: Sequence[str],
    under: Under | None = None,
    guard: Guard | Mapping[str, Guard] | None = None,
    *,
    prompts: Sequence[str] = ("",),
    n: int = 100,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    start: Start = "auto",
    tokens_per_batch: int = 4096,
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> dict[str, GeneratedLanguages]:
    """Let the model write under each intervention; judge the texts with the model as it is.

    `generate_texts` does the first half and keeps prompts and seeds, `language_rates` the second.

    >>> under = {"off": neurons.change("de", interp.deactivate)}
    >>> found = interp.generated_languages(
    ...     model, ["de"], under, n=2, max_new_tokens=4, progress=False
    ... )
    >>> len(found["off"].texts), found["off"].rate("de").of
    (2, 2)
    """
    guards = _guards(guard, check_languages(languages))
    refuse_edited(model, _JUDGES)
    with pool_for(model, ray) as pool:
        written = generate_texts(
            model,
            prompts,
            n,
            under,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            start=start,
            tokens_per_batch=tokens_per_batch,
            out=out,
            progress=progress,
            ray=pool,
        )
        return {
            name: language_rates(
                found.texts,
                languages,
                guards,
                model,
                start=start,
                tokens_per_batch=tokens_per_batch,
                progress=progress,
                out=None if out is None else Path(out) / "judged" / f"{place:02d}",
                ray=pool,
            )
            for place, (name, found) in enumerate(written.items())
        }


def natural_guard(
    model: NeuronModel,
    texts: Mapping[str, Sequence[str]],
    *,
    max_tokens: int = 64,
    quantile: float = 0.99,
    min_bytes: int = 24,
    start: Start = "auto",
    tokens_per_batch: int = 4096,
    progress: bool = True,
) -> dict[str, Guard]:
    """A guard for each language, with the loss that this share of its natural texts keeps below.

    The bound on repetition is found likewise, but is never stricter than the default: Chinese
    hardly repeats anything. Texts are cut to `max_tokens` tokens first: give the `max_new_tokens`
    of what will be judged, since longer text repeats more and is predicted better. They should
    begin where documents or sentences do. Several hundred of them make good bounds.

    >>> texts = {"de": [f"Im Jahr {year} war der Winter sehr kalt." for year in range(1900, 1930)]}
    >>> interp.evaluations.natural_guard(model, texts, progress=False)["de"].max_repetition
    0.25
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"The quantile is {quantile}: give a share above 0, at most 1.")
    guards = {}
    for code, given in texts.items():
        if len(given) < _ENOUGH:
            raise ValueError(
                f"{len(given)} texts of {code} are too few to measure a bound: give at least "
                f"{_ENOUGH}, better some hundred."
            )
        cut = [model.decode(ids[:max_tokens]).rstrip("\ufffd") for ids in model.encode_batch(given)]
        found = language_rates(
            cut,
            [code],
            None,
            model,
            start=start,
            tokens_per_batch=tokens_per_batch,
            progress=progress,
        )
        again = max(Guard.max_repetition, float(found.repetition.quantile(quantile)))
        nats = float(found.loss.nanquantile(quantile))
        long = torch.tensor([_n_bytes(text) >= min_bytes for text in cut])
        good = long & (found.repetition <= again) & (found.loss <= nats)
        share = float(good.double().mean())
        guards[code] = Guard(min_bytes, again, nats, share, _median(found.loss))
    return guards


def _losses(
    model: NeuronModel,
    texts: Sequence[str],
    start: Start,
    tokens_per_batch: int,
    progress: bool,
    out: Path | str | None,
    ray: Ray | ActorPool | None,
) -> tuple[Int64[Tensor, " text"], Float64[Tensor, " text"]]:
    """Tokens of each text, and its nats per token; of a text beyond the context, of its head."""
    refuse_edited(model, _JUDGES)
    first = start_ids(model, start)
    encoded = model.encode_batch(texts)
    tokens = torch.tensor([len(ids) for ids in encoded], dtype=torch.int64)
    loss = torch.full((len(texts),), math.nan, dtype=torch.float64)
    rows = [[*first, *ids][: model.max_length] for ids in encoded]
    readable = [text for text, row in enumerate(rows) if len(row) > 1]
    batches = [
        [readable[row] for row in batch]
        for batch in by_length([len(rows[text]) for text in readable], tokens_per_batch)
    ]
    jobs = []
    with folder_for(out) as folder, bar(len(readable), "judging", progress) as seen:
        for number, here in enumerate(batches):
            path = folder / "pieces" / f"{number:05d}.safetensors"
            work = partial(_judge, path, [rows[text] for text in here])
            jobs.append(Job(f"judging batch {number}", path, work, len(here)))
        pieces = finish(jobs, _load_judged, seen, model, ray)
    for here, nats in zip(batches, pieces, strict=True):
        loss[here] = nats
    return tokens, loss


@torch.inference_mode()
def _judge(path: Path, rows: Sequence[list[int]], model: NeuronModel) -> None:
    """Nats per token of one batch, into its file."""
    ids, mask = padded(rows, "right")
    nats = model.losses(ids, mask).double().cpu()
    loss = nats.where(mask[:, 1:], 0.0).sum(dim=1) / mask[:, 1:].sum(dim=1)
    artifacts.save(path, "JudgedPiece", {"loss": loss}, {}, {})


def _load_judged(path: Path) -> Float64[Tensor, " text"]:
    return artifacts.load(path, "JudgedPiece").tensors["loss"]


def _guards(
    given: Guard | Mapping[str, Guard] | None, languages: Sequence[str]
) -> dict[str, Guard]:
    """A guard for each language."""
    if given is None or isinstance(given, Guard):
        return dict.fromkeys(languages, given or Guard())
    if missing := [code for code in languages if code not in given]:
        raise ValueError(
            f"There is no guard for {', '.join(missing)}: measure one, or give Guard()."
        )
    return {code: given[code] for code in languages}


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _median(values: Float64[Tensor, " text"]) -> float:
    """NaN of none; texts without a loss do not count."""
    return float(values.nanquantile(0.5)) if len(values) else math.nan
