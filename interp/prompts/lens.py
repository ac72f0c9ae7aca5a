"""Logit lens: what each layer would predict next, and in which language.

The lens reads a layer's residual stream as if it were the last layer's: through the final norm and
the unembedding (Wendler et al., 2024, "Do Llamas Work in English?"). Here the model itself does
that, with the layer's state in place of its last block's output, so every architecture is read by
its own code, caps and scales included. Norm and unembedding are trained for the last layer: a low
probability in early layers may mean that they do not fit, not that the information is missing.

A word can be spelled with many tokens. Every token that it may begin with counts for it, with a
space before it or without; `Spelling` finds these in any vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from interp.counting.stats import ActivationMoments
from interp.inference.intervals import Estimate, mean_over_examples
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.models.recording import recording
from interp.models.running import running_instead
from interp.results.bars import tqdm
from interp.results.display import Cells, counted, layer_cells, listed
from interp.results.frames import tidy
from interp.results.saved import Saved
from interp.results.words import Bos
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora
from interp.text.labels import check_labels
from interp.text.tokens import Prompt, by_length, padded, prompt_ids

_ROWS = 256  # states that one pass converts to logits


class Question(NamedTuple):
    """A prompt, and its answer in each language.

    >>> answers = {"en": "Tuesday", "de": "Dienstag"}
    >>> question = interp.prompts.Question("Der Tag nach Montag ist", answers)
    >>> interp.logit_lens(model, [question]).languages
    ('en', 'de')
    """

    prompt: Prompt
    """Text or token ids."""

    answers: Mapping[str, str | Sequence[str]]
    """Language → a word, or several acceptable ones."""


class Spelling:
    """Finds the tokens of a model's vocabulary that words may begin with."""

    def __init__(self, model: NeuronModel) -> None:
        special = set(model.special_ids)
        self._ids: dict[bytes, list[int]] = {}
        for id, piece in enumerate(token_bytes(model)):
            if piece and id not in special:
                self._ids.setdefault(piece, []).append(id)

    def beginnings(self, word: str) -> tuple[int, ...]:
        """Every token that a word may begin with, with a space before it or without; sorted.

        As in Wendler et al. (2024), down to single letters, and never the space alone. If the first
        character has no token of its own, tokens of its first bytes count too. The authors always
        count its first byte, which makes many Chinese and Japanese words equal.
        """
        word = word.strip()
        ids: set[int] = set()
        for space in (b"", b" "):
            prefixes = [space + word[:n].encode() for n in range(1, len(word) + 1)]
            ids.update(id for prefix in prefixes for id in self._ids.get(prefix, ()))
            if word and prefixes[0] not in self._ids:
                sizes = range(len(space) + 1, len(prefixes[0]))
                ids.update(id for n in sizes for id in self._ids.get(prefixes[0][:n], ()))
        return tuple(sorted(ids))


def token_bytes(model: NeuronModel) -> list[bytes]:
    """The UTF-8 bytes of each token of the vocabulary; the space marker is a space.

    Byte-level vocabularies have a character for each byte; SentencePiece has "▁" for a space and
    <0x0A> for a byte. A token may be part of a character. Empty: no token has this id.
    """
    vocabulary: dict[str, int] = model.tokenizer.get_vocab()
    letters = _byte_letters()
    space = next(letter for letter, byte in letters.items() if byte == 32)  # others may be missing
    by_bytes = space in vocabulary and model.decode([vocabulary[space]]) != space
    pieces = [b""] * max(model.n_vocab, *(id + 1 for id in vocabulary.values()))
    for token, id in vocabulary.items():
        if by_bytes and all(letter in letters for letter in token):
            pieces[id] = bytes(letters[letter] for letter in token)
        elif not by_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            pieces[id] = bytes([int(token[3:5], 16)])
        else:
            pieces[id] = token.replace("▁", " ").encode()
    return pieces


def _byte_letters() -> dict[str, int]:
    """The character that byte-level tokenizers write for each byte: itself, if it is visible."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters = {chr(byte): byte for byte in visible}
    return letters | {
        chr(256 + n): byte for n, byte in enumerate(sorted(set(range(256)) - visible))
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens(Saved):
    """What every layer would predict at the last token of each prompt.

    >>> answers = {"en": "Tuesday", "de": "Dienstag"}
    >>> question = interp.prompts.Question("Der Tag nach Montag ist", answers)
    >>> lens = interp.logit_lens(model, [question], n_top=3)
    >>> lens.probability.shape, lens.top.shape
    (torch.Size([1, 6, 2]), torch.Size([1, 6, 3]))
    """

    kind = "Lens"
    made_by = "interp.logit_lens(model, questions)"

    probability: Float64[Tensor, "prompt layer language"]
    """That the next token begins the answer in a language; in the last layer, the model's own."""

    entropy: Float64[Tensor, "prompt layer"]
    """Entropy of the next token, in nats."""

    top: Int64[Tensor, "prompt layer rank"]
    """The most likely tokens, most likely first."""

    languages: tuple[str, ...]
    """Labels, in the order of the language axis."""

    kept: tuple[int, ...]
    """Indices of the questions on the prompt axis."""

    alike: tuple[int, ...]
    """Indices of questions left out because answers in two languages may share a first token."""

    unspelled: tuple[int, ...]
    """Indices of questions left out because no token begins one of the answers."""

    def __repr__(self) -> str:
        last = zip(self.languages, self.probability[:, -1].mean(dim=0).tolist(), strict=True)
        return (
            f"Lens({counted(len(self.kept), 'question')} in {self.probability.shape[1]} layers; "
            f"answers at the last: {listed(f'{code} {mean:.2f}' for code, mean in last)}; left "
            f"out: {len(self.alike):,} alike, {len(self.unspelled):,} unspelled)"
        )

    def _cells(self) -> Cells:
        mean = reduce(self.probability, "prompt layer language -> language layer", "mean")
        names = [[code] for code in self.languages]
        return layer_cells(
            names, mean.tolist(), "mean probability of the answer, read out at each layer"
        )

    def mean(self, level: float = 0.95) -> Estimate:
        """Probability [layer language], mean over prompts, with confidence intervals."""
        return mean_over_examples(self.probability, level=level)

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """One row per layer and language; the entropy, in nats, is the layer's."""
        mean, entropy = self.mean(level), reduce(self.entropy, "prompt layer -> layer", "mean")
        return tidy(
            {"layer": range(self.probability.shape[1]), "language": self.languages},
            {
                "probability": mean.value,
                "low": mean.low,
                "high": mean.high,
                "entropy": rearrange(entropy, "layer -> layer 1"),
                "prompts": len(self.kept),
                "alike": len(self.alike),
                "unspelled": len(self.unspelled),
            },
        )


def logit_lens(
    model: AnyModel,
    questions: Sequence[Question],
    n_top: int = 10,
    tokens_per_batch: int = 4096,
    bos: Bos = "auto",
) -> Lens:
    """The probability of each language's answer in every layer, at the last token of each prompt.

    Questions in which answers of two languages may begin with the same token are left out and
    counted, as in Wendler et al. (2024): there the token does not identify the language. So ask
    about two or three languages at a time rather than many. `bos` says what is put before text.

    Costs a forward pass of the prompts, and one of a token per prompt and layer.

    >>> answers = {"en": "Tuesday", "de": "Dienstag"}
    >>> question = interp.prompts.Question("Der Tag nach Montag ist", answers)
    >>> lens = interp.logit_lens(model, [question])
    >>> lens.languages[lens.probability[0, -1].argmax()]
    'de'
    """
    model = as_model(model)
    if not questions:
        raise ValueError("There are no questions: give one or more.")
    languages = check_labels(list(questions[0].answers))
    answerable = _answerable(model, questions, languages)
    prompts = {
        index: prompt_ids(model, questions[index].prompt, bos) for index in answerable.tokens
    }
    n_top = min(n_top, model.n_vocab)
    probability = torch.zeros(len(prompts), model.n_layers, len(languages), dtype=torch.float64)
    entropy = torch.zeros(len(prompts), model.n_layers, dtype=torch.float64)
    top = torch.zeros(len(prompts), model.n_layers, n_top, dtype=torch.int64)
    batches = list(by_length([len(ids) for ids in prompts.values()], tokens_per_batch))
    indices = list(prompts)
    for batch in tqdm(batches, "reading layers", unit="batch"):
        states = last_states(model, [prompts[indices[row]] for row in batch])
        for row, state in zip(batch, states, strict=True):
            index, by_token = indices[row], read_out(model, state).double().softmax(dim=-1).cpu()
            if by_token.isnan().any():
                raise ValueError(
                    f"{model.name} gives NaN after question {index}: weights may be "
                    f"damaged, or {model.dtype} too narrow. Load it with dtype=torch.float32."
                )
            entropy[row] = torch.special.entr(by_token).sum(dim=-1)
            top[row] = by_token.topk(n_top, dim=-1).indices
            for column, tokens in enumerate(answerable.tokens[index]):
                probability[row, :, column] = by_token[:, sorted(tokens)].sum(dim=-1)
    return Lens(
        probability=probability,
        entropy=entropy,
        top=top,
        languages=languages,
        kept=tuple(prompts),
        alike=answerable.alike,
        unspelled=answerable.unspelled,
    )


class _Answerable(NamedTuple):
    """Questions that can be asked, by index."""

    tokens: dict[int, list[set[int]]]
    """Of these questions: the tokens that the answer in each language may begin with."""

    alike: tuple[int, ...]
    """As in `Lens`."""

    unspelled: tuple[int, ...]


def _answerable(
    model: NeuronModel, questions: Sequence[Question], languages: Sequence[str]
) -> _Answerable:
    """An error if no question can be asked, or if one has answers in other languages."""
    spelling = Spelling(model)
    by_question: dict[int, list[set[int]]] = {}
    alike, unspelled = [], []
    for index, question in enumerate(questions):
        if tuple(question.answers) != tuple(languages):
            raise ValueError(
                f"Question {index} has answers in {', '.join(question.answers)}, but the first "
                f"has them in {', '.join(languages)}: give every question the same languages, in "
                "the same order."
            )
        tokens = [_tokens(spelling, answer) for answer in question.answers.values()]
        if not all(tokens):
            unspelled.append(index)
        elif any(one & other for one, other in combinations(tokens, 2)):
            alike.append(index)
        else:
            by_question[index] = tokens
    if not by_question:
        raise ValueError(
            f"None of the {len(questions)} questions can be asked: in {len(alike)} the answers in "
            f"two languages may begin with the same token, in {len(unspelled)} no token begins an "
            f"answer. Ask about fewer languages than {', '.join(languages)}, or other questions."
        )
    return _Answerable(by_question, tuple(alike), tuple(unspelled))


def _tokens(spelling: Spelling, answer: str | Sequence[str]) -> set[int]:
    words = [answer] if isinstance(answer, str) else answer
    return {id for word in words for id in spelling.beginnings(word)}


@torch.no_grad()
def last_states(
    model: NeuronModel, prompts: Sequence[Sequence[int]]
) -> Float[Tensor, "prompt layer d_model"]:
    """The residual stream after each layer, at the last token of each prompt."""
    ids, mask = padded(prompts, "right")
    rows, last = torch.arange(len(prompts)), mask.sum(dim=1) - 1

    def at_the_end(values: Tensor) -> Tensor:
        return values[rows.to(values.device), last.to(values.device)].to(model.device)

    with recording(model, ["resid_post"], at_the_end) as states:
        model.body(ids, mask)
    return torch.stack([states["resid_post", layer][0] for layer in range(model.n_layers)], dim=1)


@torch.no_grad()
def read_out(
    model: NeuronModel, states: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row vocab"]:
    """The logits of states, each read as the residual stream after the last layer.

    The model runs on dummy tokens, one per state, with the states in place of its last block's
    output; the blocks before it are left out, since nothing depends on them.
    """
    logits = []
    with _last_block_alone(model):
        for rows in states.split(min(_ROWS, model.max_length)):

            def put(values: Tensor, hook: Any, rows: Tensor = rows) -> Tensor:
                return rearrange(rows, "row d_model -> 1 row d_model").to(values)

            ids = torch.zeros(1, len(rows), dtype=torch.int64)
            with model.hooks([(model.site(model.n_layers - 1, "resid_post"), put)]):
                logits.append(model.logits(ids)[0])
    return torch.cat(logits)


@contextmanager
def _last_block_alone(model: NeuronModel) -> Iterator[None]:
    """Within the block, all blocks but the last return their input, in the form of their output."""
    blocks: list[Any] = list(model.bridge.blocks)[:-1]
    forms: dict[int, Any] = {}

    def keep(number: int, block: Any, given: Any, output: Any) -> None:
        forms[number] = output

    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            stack.callback(block.register_forward_hook(partial(keep, number)).remove)
        model.logits(torch.zeros(1, 1, dtype=torch.int64))  # one token shows the form
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            stack.enter_context(running_instead(partial(_pass_on, forms[number]), [block]))
        yield


def _pass_on(form: Any, *given: Any, **settings: Any) -> Any:
    """The residual stream that a block is given, where its output has it: alone, or in a tuple."""
    stream = given[0] if given else settings["hidden_states"]
    return (stream, *form[1:]) if isinstance(form, tuple) else stream


def token_languages(corpora: Corpora, model: AnyModel) -> Float64[Tensor, "language vocab"]:
    """How each token's frequency divides among languages.

    A token's frequency in one language over the sum of its frequencies in all. One: it occurs in
    that language only; NaN: it occurs in no text, so nothing is known. Rare tokens mostly occur in
    a single text, so give much text.

    >>> interp.prompts.token_languages(text, model).shape
    torch.Size([3, 16384])
    """
    model = as_model(model)
    counts = torch.zeros(len(corpora.languages), model.n_vocab, dtype=torch.int64)
    for row, code in enumerate(corpora.languages):
        rows = corpora.rows[code]
        seen = rows.ids[corpora.keep(rows.ids, rows.length)].long().cpu()
        counts[row] = seen.bincount(minlength=model.n_vocab)
    rate = counts.double() / reduce(counts, "language vocab -> language 1", "sum")
    return rate / reduce(rate, "language vocab -> 1 vocab", "sum")


def languages_of(
    tokens: Int[Tensor, "*batch rank"], shares: Float64[Tensor, "language vocab"]
) -> Float64[Tensor, "*batch language"]:
    """How tokens divide among languages, averaged over those that occur in any text.

    `shares` come from `token_languages`. Rows add up to one; NaN: none of the tokens occurs.
    """
    return shares[:, tokens].nanmean(dim=-1).movedim(0, -1)


def promoted_languages(
    model: AnyModel,
    selection: NeuronSelection,
    shares: Float64[Tensor, "language vocab"],
    moments: ActivationMoments | None = None,
    n_top: int = 20,
) -> Float64[Tensor, "owner layer language"]:
    """Which languages' tokens each language's neurons promote, layer by layer.

    A neuron's output vector, scaled to norm √d_model, is read out alone, minus the logits of its
    negative. Its `n_top` most promoted tokens divide among languages as in `languages_of`; the
    result is the mean over the neurons of a language (the owner). Only the direct path to the
    logits counts: effects through later layers are not seen, and a norm of the MLP's output (Gemma
    2 and 3) is skipped. On gated MLPs a neuron's output may have either sign; `moments` gives it
    the sign of its mean output in its language, else it is positive. NaN: the language has no
    neuron in this layer, or the tokens occur in no text.

    Compare with `selection.random_like`: any neuron promotes tokens of some languages.

    >>> shares = interp.prompts.token_languages(text, model)
    >>> interp.prompts.promoted_languages(model, neurons, shares).shape
    torch.Size([3, 6, 3])
    """
    model = as_model(model)
    selection = selection.neurons()
    selection.check_model(model)
    by_owner = torch.full(
        (len(selection.languages), model.n_layers, len(shares)), torch.nan, dtype=torch.float64
    )
    for layer in range(model.n_layers):
        chosen = selection.union()[layer].nonzero().flatten()
        if not len(chosen):
            continue
        write = model.written(layer, chosen).float()
        write = write * (model.d_model**0.5 / write.norm(dim=-1, keepdim=True))
        for row, language in enumerate(selection.languages):
            owned = selection[language][layer][chosen]
            if not owned.any():
                continue
            state = write[owned.to(write.device)]
            if moments is not None:
                output = moments.output_mean[moments.languages.index(language), layer]
                negative = (output[chosen[owned].cpu()] < 0).to(state.device)
                state = state.where(~rearrange(negative, "neuron -> neuron 1"), -state)
            logits = read_out(model, state) - read_out(model, -state)
            top = logits.float().topk(min(n_top, model.n_vocab), dim=-1).indices.cpu()
            by_owner[row, layer] = languages_of(top, shares).nanmean(dim=0)
    return by_owner
