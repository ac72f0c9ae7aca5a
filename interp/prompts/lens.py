"""What each layer would say next, and in which language.

The logit lens reads a layer's residual stream as if it were the last layer's: through the final
norm and the unembedding (Wendler et al., 2024, "Do Llamas Work in English?"). Here the model itself
does that, with the layer's state put behind its last block, so that every architecture is read by
its own code, caps and scales included. Norms and unembedding belong to the last layer: at early
layers, low probability says that they do not fit, not that nothing is there.

An answer is spelled by many tokens. Whatever a word may begin with counts for it: every token that
is a beginning of it, with the space before it or without; `Spelling` finds them in any vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from interp.counting.stats import ActivationMoments
from interp.inference.intervals import Estimate, mean_over_examples
from interp.models.neuron_model import NeuronModel
from interp.models.recording import recording
from interp.results.bars import tqdm
from interp.results.display import counted, listed
from interp.results.frames import tidy
from interp.results.saved import Saved
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora
from interp.text.languages import check_languages
from interp.text.tokens import Prompt, by_length, padded, prompt_ids

_ROWS = 256  # states that one pass turns into logits


class Question(NamedTuple):
    """A prompt, and how its answer is said in each language.

    >>> answers = {"en": "Tuesday", "de": "Dienstag"}
    >>> question = interp.prompts.Question("Der Tag nach Montag ist", answers)
    >>> interp.logit_lens(model, [question]).languages
    ('en', 'de')
    """

    prompt: Prompt
    """Text, read without special tokens, or token ids."""

    answers: Mapping[str, str | Sequence[str]]
    """Language → a word, or several that will do."""


class Spelling:
    """The tokens that words may begin with, in the vocabulary of one model."""

    def __init__(self, model: NeuronModel) -> None:
        special = set(model.special_ids)
        self._ids: dict[bytes, list[int]] = {}
        for id, piece in enumerate(token_bytes(model)):
            if piece and id not in special:
                self._ids.setdefault(piece, []).append(id)

    def beginnings(self, word: str) -> tuple[int, ...]:
        """Every token that a word begins with, with a space before it or without; rising.

        As in Wendler et al. (2024), down to single letters, and never the space alone. Of a
        character that has no token of its own, tokens with its first bytes count too; they take the
        first byte always, which sets many a Chinese word equal with a Japanese one.
        """
        word = word.strip()
        found: set[int] = set()
        for space in (b"", b" "):
            whole = [space + word[:n].encode() for n in range(1, len(word) + 1)]
            found.update(id for piece in whole for id in self._ids.get(piece, ()))
            if word and whole[0] not in self._ids:
                parts = range(len(space) + 1, len(whole[0]))
                found.update(id for n in parts for id in self._ids.get(whole[0][:n], ()))
        return tuple(sorted(found))


def token_bytes(model: NeuronModel) -> list[bytes]:
    """What each token of the vocabulary writes, in UTF-8 bytes; the space marker is a space.

    Byte-level vocabularies have a character for each byte; SentencePiece has "▁" for a space and
    <0x0A> for bytes. A token may hold half a character. Empty: no token has this number.
    """
    vocabulary: dict[str, int] = model.tokenizer.get_vocab()
    letters = _byte_letters()
    by_bytes = vocabulary.keys() >= letters.keys()
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
    """The character that byte-level tokenizers write for each byte: itself, if it can be seen."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters = {chr(byte): byte for byte in visible}
    return letters | {
        chr(256 + n): byte for n, byte in enumerate(sorted(set(range(256)) - visible))
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens(Saved):
    """What every layer would say at the last token of each prompt.

    >>> answers = {"en": "Tuesday", "de": "Dienstag"}
    >>> question = interp.prompts.Question("Der Tag nach Montag ist", answers)
    >>> lens = interp.logit_lens(model, [question], n_top=3)
    >>> lens.probability.shape, lens.top.shape
    (torch.Size([1, 6, 2]), torch.Size([1, 6, 3]))
    """

    kind = "Lens"
    made_by = "interp.logit_lens(model, questions)"

    probability: Float64[Tensor, "prompt layer language"]
    """That the next token begins the answer in that language. The last layer is the model's own."""

    entropy: Float64[Tensor, "prompt layer"]
    """Of the next token, in nats."""

    top: Int64[Tensor, "prompt layer rank"]
    """The most likely tokens, most likely first."""

    languages: tuple[str, ...]
    """ISO codes, in the order of the language axis."""

    kept: tuple[int, ...]
    """Numbers of the questions that are on the prompt axis."""

    alike: tuple[int, ...]
    """Numbers of those left out because answers of two languages may begin with the same token."""

    unspelled: tuple[int, ...]
    """Numbers of those left out because no token begins some answer."""

    def __repr__(self) -> str:
        last = zip(self.languages, self.probability[:, -1].mean(dim=0).tolist(), strict=True)
        return (
            f"Lens({counted(len(self.kept), 'question')} in {self.probability.shape[1]} layers; "
            f"answers at the last: {listed(f'{code} {mean:.2f}' for code, mean in last)}; left "
            f"out: {len(self.alike):,} alike, {len(self.unspelled):,} unspelled)"
        )

    def mean(self, level: float = 0.95) -> Estimate:
        """Probability [layer language], on average over prompts, with intervals."""
        return mean_over_examples(self.probability, level=level)

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """A row for each layer and language; entropy is that of the layer, in nats."""
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
    model: NeuronModel,
    questions: Sequence[Question],
    n_top: int = 10,
    tokens_per_batch: int = 4096,
) -> Lens:
    """The probability of each language's answer in every layer, at the last token of each prompt.

    Questions in which answers of two languages may begin with the same token are left out and
    counted, as in Wendler et al. (2024): there the layer cannot be said to speak either. So ask
    about two or three languages at a time rather than about many.

    Costs a forward pass of the prompts, and one of as many tokens as there are prompts and layers.

    >>> answers = {"en": "Tuesday", "de": "Dienstag"}
    >>> question = interp.prompts.Question("Der Tag nach Montag ist", answers)
    >>> lens = interp.logit_lens(model, [question])
    >>> lens.languages[lens.probability[0, -1].argmax()]
    'de'
    """
    if not questions:
        raise ValueError("There is no question: give one or more.")
    languages = check_languages(list(questions[0].answers))
    asked = _answerable(model, questions, languages)
    prompts = {number: prompt_ids(model, questions[number].prompt) for number in asked.tokens}
    n_top = min(n_top, model.n_vocab)
    probability = torch.zeros(len(prompts), model.n_layers, len(languages), dtype=torch.float64)
    entropy = torch.zeros(len(prompts), model.n_layers, dtype=torch.float64)
    top = torch.zeros(len(prompts), model.n_layers, n_top, dtype=torch.int64)
    batches = list(by_length([len(ids) for ids in prompts.values()], tokens_per_batch))
    numbers = list(prompts)
    for batch in tqdm(batches, "reading layers", unit="batch", delay=2, leave=False):
        states = last_states(model, [prompts[numbers[row]] for row in batch])
        for row, state in zip(batch, states, strict=True):
            number, chance = numbers[row], read_out(model, state).double().softmax(dim=-1).cpu()
            if chance.isnan().any():
                raise ValueError(
                    f"{model.name} gives NaN after question {number}: weights may be "
                    f"damaged, or {model.dtype} too narrow. Load it with dtype=torch.float32."
                )
            entropy[row] = torch.special.entr(chance).sum(dim=-1)
            top[row] = chance.topk(n_top, dim=-1).indices
            for column, tokens in enumerate(asked.tokens[number]):
                probability[row, :, column] = chance[:, sorted(tokens)].sum(dim=-1)
    return Lens(
        probability=probability,
        entropy=entropy,
        top=top,
        languages=languages,
        kept=tuple(prompts),
        alike=asked.alike,
        unspelled=asked.unspelled,
    )


class _Answerable(NamedTuple):
    """Which questions can be asked, by number."""

    tokens: dict[int, list[set[int]]]
    """The tokens that an answer may begin with, in each language, of those that can."""

    alike: tuple[int, ...]
    """As in `Lens`."""

    unspelled: tuple[int, ...]


def _answerable(
    model: NeuronModel, questions: Sequence[Question], languages: Sequence[str]
) -> _Answerable:
    """Refused where no question is left, or one has answers in other languages."""
    spelling = Spelling(model)
    kept: dict[int, list[set[int]]] = {}
    alike, unspelled = [], []
    for number, question in enumerate(questions):
        if tuple(question.answers) != tuple(languages):
            raise ValueError(
                f"Question {number} has answers in {', '.join(question.answers)}, the first in "
                f"{', '.join(languages)}: give each the same languages, in the same order."
            )
        tokens = [_tokens(spelling, answer) for answer in question.answers.values()]
        if not all(tokens):
            unspelled.append(number)
        elif any(one & other for one, other in combinations(tokens, 2)):
            alike.append(number)
        else:
            kept[number] = tokens
    if not kept:
        raise ValueError(
            f"Of {len(questions)} questions none is left: in {len(alike)} the answers of two "
            f"languages may begin with the same token, in {len(unspelled)} no token begins one. "
            f"Ask about fewer languages than {', '.join(languages)}, or other questions."
        )
    return _Answerable(kept, tuple(alike), tuple(unspelled))


def _tokens(spelling: Spelling, answer: str | Sequence[str]) -> set[int]:
    words = [answer] if isinstance(answer, str) else answer
    return {id for word in words for id in spelling.beginnings(word)}


@torch.no_grad()
def last_states(
    model: NeuronModel, prompts: Sequence[Sequence[int]]
) -> Float[Tensor, "prompt layer d_model"]:
    """The residual stream behind each layer, at the last token of each prompt."""
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
    """The logits of states, each taken for the residual stream behind the last layer.

    The model runs on tokens that do not matter, one for each state, and is handed the states behind
    its last block.
    """
    pieces = []
    for some in states.split(min(_ROWS, model.max_length)):

        def put(values: Tensor, hook: Any, some: Tensor = some) -> Tensor:
            return rearrange(some, "row d_model -> 1 row d_model").to(values)

        ids = torch.zeros(1, len(some), dtype=torch.int64)
        with model.hooks([(model.site(model.n_layers - 1, "resid_post"), put)]):
            pieces.append(model.logits(ids)[0])
    return torch.cat(pieces)


def token_languages(corpora: Corpora, model: NeuronModel) -> Float64[Tensor, "language vocab"]:
    """To which language each token belongs, by how often it occurs in texts of each.

    A token's frequency in one language over the sum of its frequencies in all. One: it is in that
    language alone; NaN: it is in no text, so nothing is known. Rare tokens are mostly in one text
    only, so give much text.
    """
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
    """How some tokens divide among languages, on average over those that are in any text.

    `shares` are `token_languages`. Rows add up to one; NaN: none of the tokens is in any text.
    """
    return shares[:, tokens].nanmean(dim=-1).movedim(0, -1)


def promoted_languages(
    model: NeuronModel,
    selection: NeuronSelection,
    shares: Float64[Tensor, "language vocab"],
    moments: ActivationMoments | None = None,
    n_top: int = 20,
) -> Float64[Tensor, "owner layer language"]:
    """Which language's tokens each language's neurons make likelier, layer by layer.

    A neuron's output vector, as long as a state, is read out alone, less its opposite, and its
    `n_top` most promoted tokens divide among languages as `languages_of` says; then the mean over
    the neurons that belong to the language (the owner). Only the direct way to the logits: what
    later layers make of it is not seen, and a norm of the MLP's output (Gemma 2 and 3) is passed
    by. On gated MLPs a neuron may give either sign; with `moments` it gets that of its mean output
    in its language, else plus. NaN: no neuron of the language in this layer, or tokens in no text.

    Compare with `selection.random_like`: tokens of some languages are promoted by any neuron.
    """
    selection = selection.neurons()
    selection.check_model(model)
    found = torch.full(
        (len(selection.languages), model.n_layers, len(shares)), torch.nan, dtype=torch.float64
    )
    for layer in range(model.n_layers):
        chosen = selection.union()[layer].nonzero().flatten()
        if not len(chosen):
            continue
        write = model.w_out(layer).detach()[chosen.to(model.w_out(layer).device)].float()
        write = write * (model.d_model**0.5 / write.norm(dim=-1, keepdim=True))
        for row, language in enumerate(selection.languages):
            mine = selection[language][layer][chosen]
            if not mine.any():
                continue
            state = write[mine.to(write.device)]
            if moments is not None:
                output = moments.output_mean[moments.languages.index(language), layer]
                backwards = (output[chosen[mine].cpu()] < 0).to(state.device)
                state = state.where(~rearrange(backwards, "neuron -> neuron 1"), -state)
            logits = read_out(model, state) - read_out(model, -state)
            top = logits.float().topk(min(n_top, model.n_vocab), dim=-1).indices.cpu()
            found[row, layer] = languages_of(top, shares).nanmean(dim=0)
    return found
