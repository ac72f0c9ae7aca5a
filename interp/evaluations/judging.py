"""How the untouched model judges texts: their loss, and what shuffling their words costs.

Text is more than words that are likely one by one: in another order the same words are less likely.
Words in no order lose nothing when they are shuffled again.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from interp.evaluations.writing import bar
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.words import Bos
from interp.runs.jobs import finish, folder_for, refuse_edited
from interp.runs.ray import ActorPool, Job, Ray
from interp.text.counterfactuals import words_shuffled
from interp.text.tokens import beginning, by_length, padded

JUDGES = "texts are judged by the untouched model, so that the edit does not judge itself"


class Judged(NamedTuple):
    """What the model says about each text."""

    tokens: Int64[Tensor, " text"]
    """Length in tokens, of the whole text."""

    loss: Float64[Tensor, " text"]
    """Nats per token."""

    word_order: Float64[Tensor, " text"]
    """Nats per token that shuffling the words costs."""


def judge_texts(
    model: NeuronModel,
    texts: Sequence[str],
    bos: Bos,
    tokens_per_batch: int = 4096,
    progress: bool = True,
    out: Path | str | None = None,
    ray: Ray | ActorPool | None = None,
) -> Judged:
    """Losses of the texts, and how much more the same words cost in an order that the hash of the
    text draws, both divided by the tokens of the text as it is. NaN: there is no token to judge.

    Words are runs of letters and digits, with what an apostrophe or a hyphen joins to them, and
    what stands between them stays in place; in scripts without spaces, words are the model's
    tokens.
    """
    shuffle = words_shuffled(partial(_words, model))
    both = [*texts, *map(shuffle, texts)]
    tokens, loss = losses_of_texts(model, both, bos, tokens_per_batch, progress, out, ray)
    n, n_first = len(texts), len(beginning(model, bos))
    judged = (tokens + n_first).clamp(max=model.max_length) - 1  # all but the row's first token
    shuffled = loss[n:] * judged[n:] / judged[:n]
    return Judged(tokens[:n], loss[:n], shuffled - loss[:n])


def _words(model: NeuronModel, letters: str) -> list[str]:
    """The tokens of a stretch of letters, joined where a character is split; single characters, if
    the tokenizer does not keep them as they are."""
    words, ids = [], []
    for id in model.encode(letters):
        ids.append(id)
        if "\ufffd" not in (word := model.decode(ids)):
            words.append(word)
            ids = []
    return words if "".join(words) == letters else list(letters)


def losses_of_texts(
    model: NeuronModel,
    texts: Sequence[str],
    bos: Bos,
    tokens_per_batch: int = 4096,
    progress: bool = True,
    out: Path | str | None = None,
    ray: Ray | ActorPool | None = None,
) -> tuple[Int64[Tensor, " text"], Float64[Tensor, " text"]]:
    """Tokens of each text, and nats per token, of its head if it is longer than the context."""
    refuse_edited(model, JUDGES)
    first = beginning(model, bos)
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
    with folder_for(out) as folder, bar(len(readable), "judging", progress) as progress_bar:
        for number, batch in enumerate(batches):
            path = folder / "pieces" / f"{number:05d}.safetensors"
            work = partial(_judge, path, [rows[text] for text in batch])
            jobs.append(Job(f"judging batch {number}", path, work, len(batch)))
        pieces = finish(jobs, _load_judged, progress_bar, model, ray)
    for batch, nats in zip(batches, pieces, strict=True):
        loss[batch] = nats
    return tokens, loss


def n_judged(out: Path) -> int:
    """Texts whose loss `losses_of_texts` has saved in its folder."""
    return sum(len(_load_judged(path)) for path in (out / "pieces").glob("*.safetensors"))


@torch.inference_mode()
def _judge(path: Path, rows: Sequence[list[int]], model: NeuronModel) -> None:
    """Save nats per token of the texts of one batch."""
    ids, mask = padded(rows, "right")
    nats = model.losses(ids, mask).double().cpu()
    loss = nats.where(mask[:, 1:], 0.0).sum(dim=1) / mask[:, 1:].sum(dim=1)
    artifacts.save(path, "JudgedPiece", {"loss": loss}, {}, {})


def _load_judged(path: Path) -> Float64[Tensor, " text"]:
    return artifacts.load(path, "JudgedPiece").tensors["loss"]
