"""Text generation, sampled or greedy, with a seed for every text; and translation."""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from interp.interventions.under import Applied, Under, applied, check_under, plan_of
from interp.models.any_model import AnyModel, as_model
from interp.models.hooked_transformer import HookedTransformerModel
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.display import Shown, counted
from interp.results.words import NOTHING, Bos
from interp.runs.folder import begin
from interp.runs.jobs import finish, folder_for, refuse_edited
from interp.runs.ray import ActorPool, Job, Ray
from interp.text.languages import language as known_language
from interp.text.tokens import Prompt, beginning, by_length, padded, prompt_ids


@dataclass(frozen=True, kw_only=True)
class Generated(Shown):
    """Texts that a model wrote; every field has one entry per text."""

    texts: tuple[str, ...]
    """What follows the prompt, without special tokens or an incomplete character at its end."""

    prompts: tuple[str, ...]
    """Prompt of each text; empty: an unconditional sample."""

    seeds: tuple[int, ...]
    """Seed of each text."""

    ended: tuple[bool, ...]
    """True: the model ended the text. False: it was cut at `max_new_tokens`."""

    def __repr__(self) -> str:
        prompts = counted(len(set(self.prompts)), "prompt")
        ended = f"{sum(self.ended):,} ended by the model"
        return f"Generated({counted(len(self.texts), 'text')} of {prompts}, {ended})"

    def to_frame(self) -> pd.DataFrame:
        """One row per text."""
        columns = {"prompt": self.prompts, "text": self.texts, "seed": self.seeds}
        return pd.DataFrame({**columns, "ended": self.ended})


def generate_texts(
    model: AnyModel,
    prompts: Sequence[Prompt] = ("",),
    n: int = 100,
    under: Under | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    bos: Bos = "auto",
    tokens_per_batch: int = 4096,
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> dict[str, Generated]:
    """`n` texts per prompt under each intervention; the prompt "" gives unconditional samples.

    A prompt is text, or token ids, to which nothing is added, as of `interp.text.chat_prompt`.

    Tokens are sampled from softmax(logits / temperature), without top-k or top-p, whatever the
    checkpoint recommends; temperature zero is greedy. Text i is sampled with seed `seed + i` and
    does not depend on the other texts of its batch, except for rounding. So interventions compared
    with the same seeds share their random numbers.

    Under bos="auto", if the tokenizer puts nothing before a text, an unconditional sample still has
    to start from something: the beginning-of-text token, or else the end-of-text token. To start
    from another, write it into the prompt: BLOOM has <s>, but learned texts between </s>.

    With `out`, every batch is saved there and the same call resumes; with `ray`, actors write the
    batches, on nodes that share `out`. Beside changes, `under` takes hook functions of
    TransformerLens, such as `{"mine": [("blocks.3.mlp.hook_post", hook)]}`, without `out`.

    >>> settings = {"max_new_tokens": 8, "progress": False}
    >>> written = interp.evaluations.generate_texts(model, ["Der Zug"], n=2, **settings)
    >>> written["nothing"].prompts, written["nothing"].seeds
    (('Der Zug', 'Der Zug'), (0, 1))
    """
    model = as_model(model)
    sizes = {"n": n, "max_new_tokens": max_new_tokens, "tokens_per_batch": tokens_per_batch}
    _check_settings(prompts, sizes, temperature)
    named = check_under(model, {NOTHING: None} if under is None else under)
    encoded = [_prompt_ids(model, prompt, bos) for prompt in prompts]
    prompts = [
        given if isinstance(given, str) else model.decode(ids)
        for given, ids in zip(prompts, encoded, strict=True)
    ]
    _check_lengths(model, encoded, prompts, max_new_tokens)

    prompt_of = [row for row in range(len(prompts)) for _ in range(n)]
    seeds = tuple(range(seed, seed + len(prompt_of)))
    if temperature > 0 and isinstance(model, HookedTransformerModel):
        tokens_per_batch = 1  # it samples from the global generator, so each text needs its own run
    lengths = [len(encoded[row]) + max_new_tokens for row in prompt_of]
    batches = list(by_length(lengths, tokens_per_batch))
    if out is not None:
        refuse_edited(model, "a folder records only the changes in `under`")
        plan = {
            "model": model.identity,
            "n": n,
            "seed": seed,
            "prompts": artifacts.hash_of(encoded),
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "tokens_per_batch": tokens_per_batch,
            "under": plan_of(named),
        }
        begin(Path(out), plan, artifacts.provenance())
    jobs = []
    total = len(named) * len(prompt_of)
    with folder_for(out) as folder, bar(total, "writing", progress) as progress_bar:
        for index, (name, changes) in enumerate(named.items()):
            for number, texts in enumerate(batches):
                path = folder / "pieces" / f"{index:02d}-{number:05d}.safetensors"
                rows = [encoded[prompt_of[text]] for text in texts]
                row_seeds = [seeds[text] for text in texts]
                work = partial(_write, path, rows, row_seeds, max_new_tokens, temperature, changes)
                jobs.append(Job(f"batch {number} of {name}", path, work, len(texts)))
        pieces = iter(finish(jobs, _load_piece, progress_bar, model, ray))
    order = [text for texts in batches for text in texts]
    asked = tuple(prompts[row] for row in prompt_of)
    return {
        name: _in_order([text for _ in batches for text in next(pieces)], order, asked, seeds)
        for name in named
    }


def _in_order(
    written: Sequence[tuple[str, bool]],
    order: Sequence[int],
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
) -> Generated:
    """The texts of one intervention, in the order of their seeds: written[i] is text order[i]."""
    by_text = dict(zip(order, written, strict=True))
    texts, ended = zip(*(by_text[text] for text in range(len(order))), strict=True)
    return Generated(texts=texts, prompts=prompts, seeds=seeds, ended=ended)


def _check_settings(
    prompts: Sequence[Prompt], sizes: Mapping[str, int], temperature: float
) -> None:
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the string {prompts!r}: give a list of strings.")
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: give at least 1.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"The temperature is {temperature}: give zero (greedy) or more.")


def _write(
    path: Path,
    rows: Sequence[list[int]],
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    changes: Sequence[Applied],
    model: NeuronModel,
) -> None:
    """Write the texts of one batch and save them."""
    with applied(changes, model), _plain_generation(model):
        ids, mask = padded(rows, "left")
        new = _continue(model, ids, mask, seeds, max_new_tokens, temperature)
    texts, ended = zip(*_decoded(model, new.tolist()), strict=True)
    artifacts.save(path, "GeneratedPiece", {}, {"texts": texts, "ended": ended}, {})


def _load_piece(path: Path) -> list[tuple[str, bool]]:
    labels = artifacts.load(path, "GeneratedPiece").labels
    return list(zip(labels["texts"], labels["ended"], strict=True))


class _Draw:
    """Logits processor that picks each next token and leaves it as the only one possible."""

    def __init__(self, uniform: Float64[Tensor, "batch step"], temperature: float) -> None:
        self._uniform, self._temperature = uniform, temperature
        self._step = 0

    def __call__(
        self, ids: Int[Tensor, "batch pos"], logits: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        if logits.isnan().any():
            raise ValueError(
                "The model gives NaN for the next token: the edit pushes activations beyond the "
                "range of the dtype. Lower the strength, or load with dtype=torch.float32."
            )
        if self._temperature == 0:
            token = logits.argmax(dim=-1, keepdim=True)
        else:
            share = torch.softmax(logits.float() / self._temperature, dim=-1)
            below = share.cumsum(dim=-1, dtype=torch.float64)
            uniform = self._uniform[:, self._step, None].to(below.device)
            token = torch.searchsorted(below, uniform * below[:, -1:], right=True)
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
    """The new tokens, without the prompt."""
    if isinstance(model, HookedTransformerModel):
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seeds[0])
            settings = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
            out = model.continuations(ids, mask, max_new_tokens=max_new_tokens, **settings)
        return out[:, ids.shape[1] :]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniform = torch.stack(
        [
            torch.rand(max_new_tokens, generator=generator, dtype=torch.float64)
            for generator in generators
        ]
    )
    draw: Any = _Draw(uniform, temperature)
    out = model.continuations(
        ids, mask, max_new_tokens=max_new_tokens, logits_processor=LogitsProcessorList([draw])
    )
    return out[:, ids.shape[1] :]


@contextmanager
def _plain_generation(model: NeuronModel) -> Iterator[None]:
    """Ignore the penalties, filters and lengths that a checkpoint recommends for generation."""
    module = None if isinstance(model, HookedTransformerModel) else model.bridge.original_model
    before = getattr(module, "generation_config", None)
    if module is None or before is None:
        yield
        return
    module.generation_config = GenerationConfig(eos_token_id=list(_end_ids(model)) or None)
    try:
        yield
    finally:
        module.generation_config = before


def _end_ids(model: NeuronModel) -> tuple[int, ...]:
    """Tokens that end a text: the tokenizer's, and any others that the checkpoint names."""
    module = getattr(model.bridge, "original_model", None)
    named = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    named = [named] if isinstance(named, int) else named or []
    own = getattr(model.tokenizer, "eos_token_id", None)
    return tuple(sorted({*named, *([] if own is None else [own])}))


def _decoded(model: NeuronModel, rows: Sequence[Sequence[int]]) -> list[tuple[str, bool]]:
    """Each text up to its end-of-text token, and whether it has one."""
    ends, special = set(_end_ids(model)), set(model.special_ids)
    texts = []
    for ids in rows:
        end = next((index for index, id in enumerate(ids) if id in ends), None)
        text = model.decode([id for id in ids[:end] if id not in special])
        texts.append((text.rstrip("\ufffd"), False) if end is None else (text, True))
    return texts


def _check_lengths(
    model: NeuronModel, encoded: Sequence[list[int]], prompts: Sequence[str], new: int
) -> None:
    if not encoded:
        raise ValueError('prompts is empty: give [""] for unconditional samples.')
    for ids, prompt in zip(encoded, prompts, strict=True):
        if not ids:
            raise ValueError(
                "There is nothing to start from: give prompts of at least one word, or "
                f'bos="auto" if {model.name} has a beginning-of-text or end-of-text token.'
            )
        if len(ids) + new > model.max_length:
            raise ValueError(
                f"The prompt {prompt[:40]!r} has {len(ids)} tokens, and {new} new ones would make "
                f"{len(ids) + new}: {model.name} takes at most {model.max_length}. Lower "
                "max_new_tokens or shorten the prompt."
            )


def _prompt_ids(model: NeuronModel, prompt: Prompt, bos: Bos) -> list[int]:
    """What a text continues: a prompt, or for "" what begins any text."""
    if not isinstance(prompt, str):
        return prompt_ids(model, prompt)
    ids = [*beginning(model, bos), *model.encode(prompt)]
    return ids or (_first_of_any(model) if bos == "auto" else [])


def _first_of_any(model: NeuronModel) -> list[int]:
    """What a text starts from before which the tokenizer puts nothing."""
    candidates = (model.bos_id, getattr(model.tokenizer, "eos_token_id", None))
    return [id for id in candidates if id is not None][:1]


def bar(total: int, what: str, show: bool) -> tqdm:
    return tqdm(total=total, unit=" texts", desc=what, disable=not show or None)


INSTRUCTIONS = (
    "Translate a sentence from English to {language}.",
    "Translate English to {language}.",
    "Translate an English sentence into {language}.",
)
"""Instructions of Kojima et al. (2024), whose prompt formats 0 to 2 have them for "a target
language", and 3 to 7 the last one with a language's name."""


def translation_prompt(sentence: str, to: str | None = None, wording: int = 2) -> str:
    """Prompt to translate an English sentence, without the name of the target language.

    So only the edited units say which language is meant (Kojima et al., 2024). With `to`, a
    language code, the prompt names the language: the baseline. `wording` is a row of
    `INSTRUCTIONS`.
    """
    if not 0 <= wording < len(INSTRUCTIONS):
        raise ValueError(f"wording is {wording}: give 0 to {len(INSTRUCTIONS) - 1}.")
    name = "a target language" if to is None else known_language(to).name
    instruction = INSTRUCTIONS[wording].format(language=name)
    last = "Target Language" if to is None else name
    return f"{instruction}\nEnglish: {sentence}\n{last}:"


def translate(
    model: AnyModel,
    sentences: Sequence[str],
    to: str | None = None,
    under: Under | None = None,
    *,
    wording: int = 2,
    **settings: Any,
) -> dict[str, tuple[str, ...]]:
    """Greedy translations under each intervention: the first line that the model writes.

    At most 128 new tokens, as in Kojima et al. (2024). `to` and `wording` are those of
    `translation_prompt`; `settings` go to `generate_texts`.

    >>> late = ["It is late."]
    >>> german = interp.evaluations.translate(model, late, "de", max_new_tokens=8, progress=False)
    >>> len(german["nothing"])
    1
    """
    model = as_model(model)
    prompts = [translation_prompt(sentence, to, wording) for sentence in sentences]
    settings = {"max_new_tokens": 128, "temperature": 0.0, **settings}
    written = generate_texts(model, prompts, 1, under, **settings)
    return {
        name: tuple(text.split("\n", 1)[0].strip() for text in generated.texts)
        for name, generated in written.items()
    }


@dataclass(frozen=True, kw_only=True)
class TranslationScore:
    """How close translations are to references, over the whole corpus."""

    bleu: float
    """0 to 100; 100: the same words in the same order."""

    chrf: float
    """0 to 100; 100: the same character n-grams (n up to six); usable where words are not."""

    signature: str
    """How sacrebleu computed BLEU: cite it with the number."""


def translation_score(
    translations: Sequence[str],
    references: Sequence[str],
    language: str,
    tokenize: str | None = None,
) -> TranslationScore:
    """BLEU and chrF by sacrebleu, with its tokenizer for the language.

    Chinese is split into characters, Japanese and Korean into words by MeCab (sacrebleu says what
    to install if it is missing), the rest as in WMT (13a). `tokenize` names another tokenizer of
    sacrebleu, such as "char"; it changes BLEU alone. Empty translations count.

    >>> cold = ["Es ist sehr kalt."]
    >>> score = interp.evaluations.translation_score(cold, cold, "de")
    >>> round(score.bleu), round(score.chrf)
    (100, 100)
    """
    code = known_language(language).code
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
    usual = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}.get(code, "13a")
    bleu = metrics.BLEU(tokenize=tokenize or usual)
    score = bleu.corpus_score(list(translations), [list(references)])
    chrf = metrics.CHRF().corpus_score(list(translations), [list(references)])
    return TranslationScore(bleu=score.score, chrf=chrf.score, signature=str(bleu.get_signature()))
