"""Let a model write, and say in which languages it wrote and whether what it wrote is still text.

A language rate alone can be had for nothing: "Englisch" a hundred times over is German. So each
rate stands beside a guard on length, repetition and loss under the untouched model. Controls: no
edit; as many random units (`NeuronSelection.random_like`); `naming_prompt`, which names the
language; and `ResidualMeans.towards`, a push of the residual stream in one layer.
"""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import pandas as pd
import torch
from einops import einsum, reduce
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessorList

from interp.activations import Batch, batches, observe
from interp.corpora import Corpora
from interp.hygiene import OTHER, UNDETERMINED, detect_language
from interp.interventions import Edit, Site, push
from interp.languages import check_languages
from interp.languages import language as known_language
from interp.model import ClassicModel, Kind, NeuronModel

Start = Literal["auto", "bos", "eos", "none"]
"""What stands before a text: the beginning-of-text token, the end-of-text token, or nothing.

"auto": the first of the two that the tokenizer has. BLOOM has both and learned from the second
alone: "eos" is right there.
"""

_WINDOW = 6  # characters: more than a word of Latin letters with its space, a phrase of Chinese
_ENOUGH = 20  # natural texts, for a bound that is to hold for nearly all of them

# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Generated:
    """What a model wrote; entry by entry, one text."""

    texts: tuple[str, ...]
    """What follows the prompt, without special tokens; no part of a character at its end."""

    prompts: tuple[str, ...]
    """The prompt of each text; empty where it was begun from nothing."""

    seeds: tuple[int, ...]
    """What each text was drawn with."""

    ended: tuple[bool, ...]
    """True: the model ended it. False: it was cut at `max_new_tokens`."""


def generate_texts(
    model: NeuronModel,
    prompts: Sequence[str] = ("",),
    n: int = 100,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    start: Start = "auto",
    batch_size: int = 32,
    progress: bool = True,
) -> Generated:
    """`n` texts for each prompt, under whatever edit surrounds the call; "" is no prompt.

    Tokens are drawn from softmax(logits / temperature) with nothing cut off, whatever the
    checkpoint recommends; at temperature zero the likeliest is taken. Text i is drawn with seed
    `seed + i` and depends on no other text of its batch, but for rounding. Two edits compared with
    the same seeds are compared with the same luck.
    """
    if isinstance(prompts, str):
        raise ValueError(f"Prompts were given as the one string {prompts!r}; give a list.")
    for name, value in {"n": n, "max_new_tokens": max_new_tokens, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: give at least 1.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"The temperature is {temperature}: give zero (greedy) or more.")
    first = _start_ids(model, start)
    encoded = [[*first, *ids] for ids in model.encode_batch(prompts)]
    _check_lengths(model, encoded, prompts, max_new_tokens)

    which = [row for row in range(len(prompts)) for _ in range(n)]
    seeds = tuple(range(seed, seed + len(which)))
    order = sorted(range(len(which)), key=lambda text: len(encoded[which[text]]))
    if temperature > 0 and isinstance(model, ClassicModel):
        batch_size = 1  # it draws from one stream of chance, so each text needs its own run
    written: dict[int, tuple[str, bool]] = {}
    with _as_it_is(model), _bar(len(which), "writing", progress) as bar:
        for at in range(0, len(order), batch_size):
            texts = order[at : at + batch_size]
            ids, mask = _padded([encoded[which[text]] for text in texts], "left")
            chosen = [seeds[text] for text in texts]
            new = _continue(model, ids, mask, chosen, max_new_tokens, temperature)
            written |= zip(texts, _decoded(model, new.tolist()), strict=True)
            bar.update(len(texts))
    return Generated(
        tuple(written[text][0] for text in range(len(which))),
        tuple(prompts[row] for row in which),
        seeds,
        tuple(written[text][1] for text in range(len(which))),
    )


class _Draw:
    """Picks each next token and leaves it as the only one possible."""

    def __init__(self, chance: Float64[Tensor, "batch step"], temperature: float) -> None:
        self._chance, self._temperature = chance, temperature
        self._step = 0

    def __call__(
        self, ids: Int[Tensor, "batch pos"], logits: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        if logits.isnan().any():
            raise ValueError(
                "The model gives NaN for the next token: the edit pushes it out of its range of "
                "numbers. Push less, or load it with dtype=torch.float32."
            )
        if self._temperature == 0:
            token = logits.argmax(dim=-1, keepdim=True)
        else:
            share = torch.softmax(logits.float() / self._temperature, dim=-1)
            below = share.cumsum(dim=-1, dtype=torch.float64)
            chance = self._chance[:, self._step, None].to(below.device)
            token = torch.searchsorted(below, chance * below[:, -1:], right=True)
            token = token.clamp(max=logits.shape[-1] - 1)
        self._step += 1
        return torch.full_like(logits, -torch.inf).scatter(1, token, 0.0)


def _continue(
    model: NeuronModel,
    ids: Int64[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
) -> Int[Tensor, "batch _"]:
    """The new tokens alone."""
    if isinstance(model, ClassicModel):
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seeds[0])
            settings = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
            out = model.generate(ids, mask, max_new_tokens=max_new_tokens, **settings)
        return out[:, ids.shape[1] :]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    chance = torch.stack(
        [torch.rand(max_new_tokens, generator=each, dtype=torch.float64) for each in generators]
    )
    draw: Any = _Draw(chance, temperature)
    out = model.generate(
        ids, mask, max_new_tokens=max_new_tokens, logits_processor=LogitsProcessorList([draw])
    )
    return out[:, ids.shape[1] :]


@contextmanager
def _as_it_is(model: NeuronModel) -> Iterator[None]:
    """Without the penalties, filters and lengths that a checkpoint recommends for generation."""
    holder = None if isinstance(model, ClassicModel) else model.bridge.original_model
    before = getattr(holder, "generation_config", None)
    if holder is None or before is None:
        yield
        return
    holder.generation_config = GenerationConfig(eos_token_id=list(_end_ids(model)) or None)
    try:
        yield
    finally:
        holder.generation_config = before


def _end_ids(model: NeuronModel) -> tuple[int, ...]:
    """Tokens that end a text: the tokenizer's, and those that the checkpoint names besides."""
    holder = getattr(model.bridge, "original_model", None)
    named = getattr(getattr(holder, "generation_config", None), "eos_token_id", None)
    named = [named] if isinstance(named, int) else named or []
    own = getattr(model.tokenizer, "eos_token_id", None)
    return tuple(sorted({*named, *([] if own is None else [own])}))


def _decoded(model: NeuronModel, rows: Sequence[Sequence[int]]) -> list[tuple[str, bool]]:
    """Each text up to its end, and whether it has one."""
    ends, silent = set(_end_ids(model)), set(model.special_ids)
    texts = []
    for ids in rows:
        end = next((place for place, id in enumerate(ids) if id in ends), None)
        text = model.decode([id for id in ids[:end] if id not in silent])
        texts.append((text.rstrip("\ufffd"), False) if end is None else (text, True))
    return texts


def _start_ids(model: NeuronModel, start: Start) -> list[int]:
    """The token before every text, if any."""
    if start not in get_args(Start):
        raise ValueError(f"start is one of {', '.join(get_args(Start))}, not {start!r}.")
    found = {"bos": model.bos_id, "eos": getattr(model.tokenizer, "eos_token_id", None)}
    if start == "auto":
        return [id for id in found.values() if id is not None][:1]
    if start == "none":
        return []
    id = found[start]
    if id is None:
        raise ValueError(
            f"start is {start!r}, and the tokenizer of {model.name} has no such token: "
            'use start="auto".'
        )
    return [id]


def _check_lengths(
    model: NeuronModel, encoded: Sequence[list[int]], prompts: Sequence[str], new: int
) -> None:
    if not encoded:
        raise ValueError('No prompt was given; [""] stands for none.')
    for ids, prompt in zip(encoded, prompts, strict=True):
        if not ids:
            raise ValueError(
                f"There is nothing to begin from: {model.name} has no beginning-of-text or "
                "end-of-text token to start with, so give prompts of a word or more."
            )
        if len(ids) + new > model.max_length:
            raise ValueError(
                f"The prompt {prompt[:40]!r} has {len(ids)} tokens, and {new} new ones would make "
                f"{len(ids) + new}: {model.name} reads {model.max_length}. Lower max_new_tokens "
                "or shorten the prompt."
            )


def _padded(
    rows: Sequence[list[int]], side: Literal["left", "right"]
) -> tuple[Int64[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        here = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, here] = torch.tensor(tokens, dtype=torch.int64)
        mask[row, here] = True
    return ids, mask


def _bar(total: int, what: str, show: bool) -> tqdm:
    return tqdm(
        total=total, unit=" texts", desc=what, disable=not show or None, delay=2, leave=False
    )


# ---------------------------------------------------------------- judging


@dataclass(frozen=True)
class Guard:
    """What a text must be like to count as text and not as noise in the right language.

    `natural_guard` measures the bounds on natural text. Those given here as defaults hold for
    99 % of pairs of news sentences in ten languages, and ask nothing of the loss.
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


def repetition(text: str) -> float:
    """Share of the text's windows of six characters that stood in it before.

    Zero: none; near one: the same again and again. It grows with length, so compare texts of like
    length: of 300 characters of news, it is below 0.2 in 99 % of cases. Texts of five characters
    have none.
    """
    windows = [text[at : at + _WINDOW] for at in range(len(text) - _WINDOW + 1)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


@dataclass(frozen=True)
class Rate:
    """Some of so many, with the interval of Wilson (1927), which is right for few and for none.

    It takes texts for independent draws: those of one prompt are, those of several are more alike.
    """

    count: int
    """How many."""

    of: int
    """Of how many."""

    level: float = 0.95
    """Share of intervals that hold the true rate."""

    @property
    def value(self) -> float:
        """NaN of none."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end; zero and one of none."""
        if not self.of:
            return 0.0, 1.0
        z = NormalDist().inv_cdf(0.5 + self.level / 2)
        p, n = self.value, self.of
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
        return (0.0 if self.count == 0 else low), (1.0 if self.count == n else high)


@dataclass(frozen=True, eq=False)
class GeneratedLanguages:
    """In which languages texts are, and how good each of them is."""

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
    batch_size: int = 32,
    progress: bool = True,
) -> GeneratedLanguages:
    """Language and quality of texts, whoever wrote them; the loss only with a model.

    All languages compete, and none gets the benefit of the doubt, the ones asked for no more than
    others: broken text goes to whatever language it resembles most. Of natural text of 64 tokens,
    99 % or more is recognised so, of Indonesian 98 % (the rest is taken for Malay). `guard`: one
    for all languages, or one for each; None: the defaults.
    """
    codes = check_languages(languages)
    guards = _guards(guard, codes)
    if model is None and any(math.isfinite(each.max_loss) for each in guards.values()):
        raise ValueError("The guard bounds the loss: give the model to measure it with.")
    found = detect_language(texts)
    tokens = torch.zeros(len(texts), dtype=torch.int64)
    loss = torch.full((len(texts),), math.nan, dtype=torch.float64)
    if model is not None:
        tokens, loss = _losses(model, texts, start, batch_size, progress)
    repeated = [repetition(text) for text in texts]
    passes = [
        code in guards
        and _n_bytes(text) >= guards[code].min_bytes
        and again <= guards[code].max_repetition
        and (nats <= guards[code].max_loss or model is None)
        for text, code, again, nats in zip(texts, found, repeated, loss.tolist(), strict=True)
    ]
    return GeneratedLanguages(
        tuple(texts),
        tuple(found),
        codes,
        torch.tensor([len(text) for text in texts], dtype=torch.int64),
        tokens,
        torch.tensor(repeated, dtype=torch.float64),
        loss,
        torch.tensor(passes, dtype=torch.bool),
    )


def generated_languages(
    model: NeuronModel,
    languages: Sequence[str],
    within: AbstractContextManager[Any] | None = None,
    guard: Guard | Mapping[str, Guard] | None = None,
    *,
    prompts: Sequence[str] = ("",),
    n: int = 100,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    start: Start = "auto",
    batch_size: int = 32,
    progress: bool = True,
) -> GeneratedLanguages:
    """Let the model write `within` an edit, such as `intervene(...)`; judge it with none.

    For several edits at once, or to keep prompts and seeds, use `generate_texts` in your own
    `with` block and `language_rates` behind it.
    """
    guards = _guards(guard, check_languages(languages))
    _refuse_edited(model)
    with within or nullcontext():
        written = generate_texts(
            model,
            prompts,
            n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            start=start,
            batch_size=batch_size,
            progress=progress,
        )
    return language_rates(
        written.texts,
        languages,
        guards,
        model,
        start=start,
        batch_size=batch_size,
        progress=progress,
    )


def natural_guard(
    model: NeuronModel,
    texts: Mapping[str, Sequence[str]],
    *,
    max_tokens: int = 64,
    quantile: float = 0.99,
    min_bytes: int = 24,
    start: Start = "auto",
    batch_size: int = 32,
    progress: bool = True,
) -> dict[str, Guard]:
    """A guard for each language, with the loss that this share of its natural texts keeps below.

    The bound on repetition is found likewise, but is never stricter than the default: Chinese
    hardly repeats anything. Texts are cut to `max_tokens` tokens first: give the `max_new_tokens`
    of what will be judged, since longer text repeats more and is predicted better. They should
    begin where documents or sentences do. Several hundred of them make good bounds.
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
            cut, [code], None, model, start=start, batch_size=batch_size, progress=progress
        )
        again = max(Guard.max_repetition, float(found.repetition.quantile(quantile)))
        nats = float(found.loss.nanquantile(quantile))
        long = torch.tensor([_n_bytes(text) >= min_bytes for text in cut])
        good = long & (found.repetition <= again) & (found.loss <= nats)
        share = float(good.double().mean())
        guards[code] = Guard(min_bytes, again, nats, share, _median(found.loss))
    return guards


@torch.inference_mode()
def _losses(
    model: NeuronModel, texts: Sequence[str], start: Start, batch_size: int, progress: bool
) -> tuple[Int64[Tensor, " text"], Float64[Tensor, " text"]]:
    """Tokens of each text, and its nats per token; of a text beyond the context, of its head."""
    _refuse_edited(model)
    first = _start_ids(model, start)
    encoded = model.encode_batch(texts)
    tokens = torch.tensor([len(ids) for ids in encoded], dtype=torch.int64)
    loss = torch.full((len(texts),), math.nan, dtype=torch.float64)
    rows = [[*first, *ids][: model.max_length] for ids in encoded]
    order = sorted((i for i, row in enumerate(rows) if len(row) > 1), key=lambda i: len(rows[i]))
    with _bar(len(order), "judging", progress) as bar:
        for at in range(0, len(order), batch_size):
            here = order[at : at + batch_size]
            ids, mask = _padded([rows[i] for i in here], "right")
            nats = model.losses(ids, mask).double().cpu()
            real = mask[:, 1:].sum(dim=1)
            loss[here] = nats.where(mask[:, 1:], 0.0).sum(dim=1) / real
            bar.update(len(here))
    return tokens, loss


def _refuse_edited(model: NeuronModel) -> None:
    """Judging under an edit would let the edit praise itself."""
    if any(point.fwd_hooks for point in model.bridge.hook_dict.values()):
        raise ValueError(
            f"{model.name} has hooks on it now, and texts are judged by the untouched model: call "
            "generate_texts inside the `with` block and language_rates behind it."
        )


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


# ---------------------------------------------------------------- baselines

_OPENINGS = {
    "en": "Here is a text in English:",
    "de": "Hier steht ein Text auf Deutsch:",
    "fr": "Voici un texte en français :",
    "es": "Aquí hay un texto en español:",
    "zh": "下面是一段中文：",  # noqa: RUF001
    "ja": "以下は日本語の文章です：",  # noqa: RUF001
    "vi": "Sau đây là một đoạn văn bằng tiếng Việt:",
    "id": "Berikut ini adalah teks dalam bahasa Indonesia:",
    "ru": "Вот текст на русском языке:",
    "ar": "إليكم نصًا باللغة العربية:",
    "hi": "यह हिन्दी में लिखा एक पाठ है:",
    "pt": "Aqui está um texto em português:",
    "ko": "다음은 한국어로 쓴 글입니다:",
    "th": "ต่อไปนี้เป็นข้อความภาษาไทย:",
    "sw": "Haya ni maandishi kwa Kiswahili:",
    "ur": "یہ اردو میں ایک متن ہے:",
    "tr": "İşte Türkçe bir metin:",
    "it": "Ecco un testo in italiano:",
    "bn": "এখানে বাংলায় একটি লেখা আছে:",
    "te": "ఇది తెలుగులో ఒక వచనం:",
    "el": "Ακολουθεί ένα κείμενο στα ελληνικά:",
    "bg": "Ето един текст на български език:",
}


def naming_prompt(language: str, words: Literal["own", "english"] = "own") -> str:
    """A line that announces text in the language, for models without instruction tuning too.

    "own": in that language, which shows it as well as names it. "english": in English, for any
    language known here.
    """
    name = known_language(language).name
    if words == "english":
        return f"Here is a text in {name}:\n"
    if words != "own":
        raise ValueError(f"words is own or english, not {words!r}.")
    if language not in _OPENINGS:
        raise ValueError(
            f"No opening line in {name} is known here, only in {', '.join(_OPENINGS)}; use "
            'words="english", or write one.'
        )
    return _OPENINGS[language] + "\n"


@dataclass(frozen=True, eq=False)
class ResidualMeans:
    """Means of the residual stream over the tokens of each language, behind each layer."""

    mean: Float64[Tensor, "language layer unit"]
    """In the unit of the stream itself; special tokens do not count."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    def towards(
        self, language: str, layer: int, strength: float = 1.0
    ) -> tuple[dict[Site, Bool[Tensor, "layer unit"]], Edit]:
        """Units and edit for `intervene(model, *means.towards(...))`: a push in one layer.

        Adds `strength` times the language's mean minus the mean of the means of the others.
        """
        if language not in self.languages:
            raise ValueError(
                f"{language!r} is not in these means, which cover {', '.join(self.languages)}."
            )
        if len(self.languages) < 2:
            raise ValueError(f"There is no language but {language} in these means to differ from.")
        n_layers = self.mean.shape[1]
        if not 0 <= layer < n_layers:
            raise ValueError(f"Layer {layer} does not exist: these means are of {n_layers} layers.")
        row = self.languages.index(language)
        others = [other for other in range(len(self.languages)) if other != row]
        rest = reduce(self.mean[others, layer], "language unit -> unit", "mean")
        chosen = torch.zeros(self.mean.shape[1:], dtype=torch.bool)
        chosen[layer] = True
        values = torch.zeros(self.mean.shape[1:])
        values[layer] = (self.mean[row, layer] - rest).float()
        name = f"{strength:g} towards {language} behind layer {layer}"
        return {"resid_post": chosen}, push({"resid_post": values}, strength, name)


class _ResidualSums:
    """Adds up the residual stream behind every layer, over one language."""

    kinds: tuple[Kind, ...] = ("resid_post",)

    def __init__(self, model: NeuronModel) -> None:
        self.sums = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64)
        self.n_tokens = 0

    def update(
        self, kind: Kind, layer: int, values: Float[Tensor, "batch pos unit"], batch: Batch
    ) -> None:
        keep = batch.keep.to(values.device, torch.float32)
        here = einsum(values.float(), keep, "batch pos unit, batch pos -> unit")
        self.sums[layer] += here.double().cpu()
        if layer == 0:
            self.n_tokens += int(batch.keep.sum())


def residual_means(
    model: NeuronModel, corpora: Corpora, tokens_per_batch: int = 8192, progress: bool = True
) -> ResidualMeans:
    """The means of all layers in one pass over the text."""
    means = []
    languages = tqdm(
        corpora.languages, desc="residual means", delay=2, disable=not progress or None, leave=False
    )
    for language in languages:
        sums = _ResidualSums(model)
        for shard in range(corpora.n_shards):
            for batch in batches(corpora, language, shard, tokens_per_batch):
                observe(model, batch, [sums])
        means.append(sums.sums / sums.n_tokens)
    return ResidualMeans(torch.stack(means), corpora.languages)


# ---------------------------------------------------------------- translation


def translation_prompt(sentence: str, to: str | None = None) -> str:
    """A request to translate an English sentence, without the name of the target language.

    Format 2 of Kojima et al. (2024): only the units forced can tell which language is meant. With
    `to`, a language code, the language is named, which is the baseline to that.
    """
    if to is None:
        return (
            "Translate an English sentence into a target language.\n"
            f"English: {sentence}\nTarget Language:"
        )
    name = known_language(to).name
    return f"Translate an English sentence into {name}.\nEnglish: {sentence}\n{name}:"


def translate(
    model: NeuronModel, sentences: Sequence[str], to: str | None = None, **settings: Any
) -> tuple[str, ...]:
    """What the model puts on the line of the translation, greedily; under a surrounding edit.

    At most 128 new tokens, as Kojima et al. (2024); `settings` go to `generate_texts`.
    """
    prompts = [translation_prompt(sentence, to) for sentence in sentences]
    settings = {"max_new_tokens": 128, "temperature": 0.0, **settings}
    written = generate_texts(model, prompts, n=1, **settings)
    return tuple(text.split("\n", 1)[0].strip() for text in written.texts)


@dataclass(frozen=True)
class TranslationScore:
    """How near translations are to references, over all of them together."""

    bleu: float
    """0 to 100: the same words in the same order."""

    chrf: float
    """0 to 100: the same runs of up to six characters; comparable where words are not."""

    signature: str
    """How sacrebleu computed BLEU: cite it with the number."""


def translation_score(
    translations: Sequence[str], references: Sequence[str], language: str
) -> TranslationScore:
    """BLEU and chrF by sacrebleu, with the tokenizer that it has for the language.

    Chinese is cut into characters; Japanese and Korean into words by MeCab, which sacrebleu asks
    for by name where it is missing; the rest as in WMT (13a). Empty translations count.
    """
    known_language(language)
    if len(translations) != len(references) or not references:
        raise ValueError(
            f"{len(translations)} translations were given with {len(references)} references: "
            "give one reference for each, and at least one."
        )
    try:
        metrics = importlib.import_module("sacrebleu.metrics")  # an extra, and slow to import
    except ImportError:
        raise ImportError(
            "BLEU and chrF need sacrebleu, which is not installed: pip install polyneuron[eval]"
        ) from None
    tokenizer = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}.get(language, "13a")
    bleu = metrics.BLEU(tokenize=tokenizer)
    score = bleu.corpus_score(list(translations), [list(references)])
    chrf = metrics.CHRF().corpus_score(list(translations), [list(references)])
    return TranslationScore(score.score, chrf.score, str(bleu.get_signature()))
