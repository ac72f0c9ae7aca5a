"""Cross-entropy of text, in nats: by language, by shard, and under several interventions.

A token's loss is minus the natural logarithm of the probability that the model gives it after the
tokens before it in its row. Every token that `Corpora.keep` counts has a loss, except the first of
a row. Averages are over losses, not perplexities, so that single tokens or rows cannot dominate
them (Tang et al., 2024, report the same; others average perplexities): nats per token, or bits per
byte to compare languages and tokenizers. A perplexity is the exponential of such a mean.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float64, Int64
from torch import Tensor

from interp.counting.batch import Batch
from interp.counting.observe import batches
from interp.inference.intervals import Estimate, jackknife_shards
from interp.interventions.under import Applied, Under, applied, check_under, plan_of
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.display import MOST_ROWS, Cells, counted, listed, ranged, table_cells
from interp.results.frames import tidy
from interp.results.saved import Saved
from interp.runs.folder import begin, read_plan
from interp.runs.jobs import finish, folder_for
from interp.runs.ray import ActorPool, Job, Ray
from interp.text.corpora import Corpora


@dataclass(frozen=True, kw_only=True)
class Losses(Saved):
    """Loss of text in nats, by language and under several interventions.

    >>> losses = interp.evaluations.losses_under(model, text, {"nothing": None}, progress=False)
    >>> losses.tokens.sum(dim=0).tolist(), losses.perplexity.shape
    ([630, 630, 630], torch.Size([1, 3]))
    """

    kind = "Losses"
    made_by = "interp.evaluations.losses_under(model, corpora, under)"

    nats: Float64[Tensor, "shard off read"]
    """Sum over the tokens of a shard; `off` are the interventions, `read` the languages read."""

    tokens: Int64[Tensor, "shard read"]
    """Tokens predicted."""

    bytes: Int64[Tensor, "shard read"]
    """Bytes of UTF-8 in the text of these tokens. Where a row begins or ends within a character,
    the fragment counts as one byte or in full: an error of two bytes at most."""

    interventions: tuple[str, ...]
    """Names along `off`; the first is what the others are compared with."""

    languages: tuple[str, ...]
    """Labels along `read`."""

    def __post_init__(self) -> None:
        n_off, n_read = self.nats.shape[1:]
        if (len(self.interventions), len(self.languages)) != (n_off, n_read):
            raise ValueError(
                f"nats has {n_off} interventions and {n_read} languages, but "
                f"{len(self.interventions)} and {len(self.languages)} names are given."
            )
        if not self.nats.isfinite().all():
            shard, off, read = (~self.nats.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"The loss on shard {shard} of {self.languages[read]} with "
                f"{self.interventions[off]} is {self.nats[shard, off, read]}."
            )

    def __repr__(self) -> str:
        return (
            f"Losses({listed(self.interventions)}; read: {listed(self.languages)}; "
            f"{ranged(self.tokens.sum(dim=0).tolist())} tokens of each language in "
            f"{counted(len(self.tokens), 'shard')})"
        )

    def _cells(self) -> Cells:
        loss = dict(zip(self.languages, self.loss.T.tolist(), strict=True))
        note = "nats per token, by the language read"
        return table_cells({"under": self.interventions, **loss}, note, MOST_ROWS)

    @property
    def loss(self) -> Float64[Tensor, "off read"]:
        """Nats per token. Zero: every token was certain. log n: as by guessing among n tokens.

        NaN: no token was predicted.
        """
        return self.nats.sum(dim=0) / self.tokens.sum(dim=0)

    @property
    def bits_per_byte(self) -> Float64[Tensor, "off read"]:
        """Bits per byte of UTF-8, which can be compared between tokenizers."""
        return self.nats.sum(dim=0) / math.log(2) / self.bytes.sum(dim=0)

    @property
    def perplexity(self) -> Float64[Tensor, "off read"]:
        """The exponential of the mean loss."""
        return self.loss.exp()

    @property
    def increase(self) -> Estimate:
        """Increase over the first intervention, in nats per token: [off read], 95 % intervals.

        Paired: the same shards under both. The first row is zero.
        """
        return nats_per_token(self.nats - self.nats[:, :1], self.tokens)

    def to_frame(self) -> pd.DataFrame:
        """One row per intervention and language, with the interval of the increase."""
        return tidy(
            {"intervention": self.interventions, "read": self.languages},
            {
                "tokens": self.tokens.sum(dim=0),
                "bytes": self.bytes.sum(dim=0),
                "loss": self.loss,
                "bits_per_byte": self.bits_per_byte,
                "perplexity": self.perplexity,
                "increase": self.increase,
            },
        )


def losses_under(
    model: AnyModel,
    corpora: Corpora,
    under: Under,
    *,
    out: Path | str | None = None,
    tokens_per_batch: int = 4096,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> Losses:
    """Cross-entropy of the text under each intervention, the first of which is the reference.

    Interventions without a change share one pass. With `out`, every shard of every language is
    saved there as soon as it is done, the same call resumes, and processes with the same `out`
    share the work; with `ray`, actors read, on nodes that share `out`. Beside changes, `under`
    takes hook functions of TransformerLens, such as `{"mine": [("blocks.3.mlp.hook_post", hook)]}`,
    without `out`.

    >>> edits = {"nothing": None, "off": neurons.change("de", interp.deactivate)}
    >>> pair = text.languages_only(["en", "de"])
    >>> losses = interp.evaluations.losses_under(model, pair, edits, progress=False)
    >>> losses.languages[losses.increase.value[1].argmax()]
    'de'
    """
    model = as_model(model)
    named = check_under(model, under)
    check_text(model, corpora)
    losses = read_all(model, corpora, named, out, tokens_per_batch, progress, ray)
    if out is not None:
        losses.save(Path(out) / "losses.safetensors", read_plan(Path(out)))
    return losses


def nats_per_token(
    more: Float64[Tensor, "shard *set read"], tokens: Int64[Tensor, "shard read"]
) -> Estimate:
    sums = {"more": more, "tokens": tokens}
    return jackknife_shards(sums, lambda total: total["more"] / total["tokens"])


# ---------------------------------------------------------------- reading


def read_all(
    model: NeuronModel,
    corpora: Corpora,
    interventions: Mapping[str, tuple[Applied, ...]],
    out: Path | str | None,
    tokens_per_batch: int,
    progress: bool,
    ray: Ray | ActorPool | None,
) -> Losses:
    """Losses of every shard of every language, computed or loaded from the folder."""
    names = tuple(interventions)
    if out is not None:
        plan = {"model": model.identity, "corpora": corpora.fingerprint}
        plan |= {"languages read": list(corpora.languages), "under": plan_of(interventions)}
        plan |= {"tokens_per_batch": tokens_per_batch}
        begin(Path(out), plan, artifacts.provenance() | {"bos": corpora.begins})
    with folder_for(out) as folder:
        jobs = _jobs(folder, corpora, interventions, tokens_per_batch)
        size = sum(job.size for job in jobs)
        settings: dict[str, Any] = {"unit": " tokens", "unit_scale": True, "disable": not progress}
        with tqdm(total=size, desc="reading", **settings) as bar:
            pieces = finish(jobs, _load_piece, bar, model, ray)
    assert all(piece.interventions == names for piece in pieces)

    def axes(name: str, pattern: str) -> Tensor:
        stacked = torch.stack([getattr(piece, name) for piece in pieces])
        return rearrange(stacked, pattern, read=len(corpora.languages)).contiguous()

    return Losses(
        nats=axes("nats", "(shard read) 1 off 1 -> shard off read"),
        tokens=axes("tokens", "(shard read) 1 1 -> shard read"),
        bytes=axes("bytes", "(shard read) 1 1 -> shard read"),
        interventions=names,
        languages=corpora.languages,
    )


def _jobs(
    folder: Path,
    corpora: Corpora,
    interventions: Mapping[str, tuple[Applied, ...]],
    tokens_per_batch: int,
) -> list[Job]:
    """A job for every shard of every language, shard by shard."""
    passes = sum(map(bool, interventions.values())) + (() in interventions.values())
    jobs = []
    for shard, code in product(range(corpora.n_shards), corpora.languages):
        path, rows = folder / "pieces" / f"{shard:04d}-{code}.safetensors", corpora.rows[code]
        prepare = partial(_prepared, path, corpora, code, shard, tokens_per_batch, interventions)
        read = partial(_prepare_and_read, prepare)
        n_tokens = passes * int(rows.length[rows.shard == shard].sum())
        jobs.append(Job(f"shard {shard} of {code}", path, read, n_tokens, prepare))
    return jobs


def _prepare_and_read(
    prepare: Callable[[], Callable[[NeuronModel], None]], model: NeuronModel
) -> None:
    prepare()(model)


def _prepared(
    path: Path,
    corpora: Corpora,
    language: str,
    shard: int,
    tokens_per_batch: int,
    interventions: Mapping[str, tuple[Applied, ...]],
) -> Callable[[NeuronModel], None]:
    """The work of one piece, with its own text only, so that an actor is sent no more than that."""
    text = list(batches(corpora, language, shard, tokens_per_batch))
    return partial(_read_and_save, path, language, shard, text, interventions)


def _read_and_save(
    path: Path,
    language: str,
    shard: int,
    text: Sequence[Batch],
    interventions: Mapping[str, tuple[Applied, ...]],
    model: NeuronModel,
) -> None:
    _read(model, language, shard, text, interventions).save(path)


@torch.inference_mode()
def _read(
    model: NeuronModel,
    language: str,
    shard: int,
    text: Sequence[Batch],
    interventions: Mapping[str, tuple[Applied, ...]],
) -> Losses:
    """One shard of one language under every intervention: the same batches for all."""
    n_tokens = sum(int(batch.keep[:, 1:].sum()) for batch in text)
    sums: list[Tensor] = []
    untouched: Tensor | None = None
    for name, changes in interventions.items():
        if not changes and untouched is not None:
            sums.append(untouched)
            continue
        total = torch.zeros((), dtype=torch.float64)
        with applied(changes, model):
            for batch in text:
                nats = _nats(model, batch)
                if not nats.isfinite().all():
                    row = int((~nats.isfinite()).nonzero()[0])
                    raise ValueError(
                        f"{model.name} gives a NaN or infinite loss on {batch.sources[row]} "
                        f"({language}, shard {shard}) with {name!r}: weights may be damaged, "
                        f"{model.dtype} too narrow, or the edit too strong. Load the model with "
                        "dtype=torch.float32, or lower the strength."
                    )
                total += nats.sum()
        sums.append(total)
        untouched = untouched if changes else total
    return Losses(
        nats=rearrange(torch.stack(sums), "off -> 1 off 1"),
        tokens=torch.tensor([[n_tokens]]),
        bytes=torch.tensor([[sum(_n_bytes(model, batch) for batch in text)]]),
        interventions=tuple(interventions),
        languages=(language,),
    )


def _nats(model: NeuronModel, batch: Batch) -> Float64[Tensor, " batch"]:
    """Loss of each row, summed over the tokens that count, except the row's first."""
    longest = batch.ids.shape[1]
    mask = None
    if (batch.length < longest).any():
        mask = torch.arange(longest) < rearrange(batch.length, "batch -> batch 1")
    losses = model.losses(batch.ids, mask).cpu().double()
    return losses.masked_fill(~batch.keep[:, 1:], 0).sum(dim=1)


def _n_bytes(model: NeuronModel, batch: Batch) -> int:
    """Bytes of text in the tokens predicted: all that count, except each row's first."""

    def size(ids: Tensor) -> int:
        text = model.decode(ids.tolist())
        return len(text.encode()) - 2 * text.count(
            "\ufffd"
        )  # a fragment of a character is one byte

    return sum(
        size(ids[keep]) - size(ids[:1][keep[:1]])
        for ids, keep in zip(batch.ids, batch.keep, strict=True)
    )


def check_text(model: NeuronModel, corpora: Corpora) -> None:
    """Refuse text that the model cannot read, before anything is read."""
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer to count bytes with: give one to wrap.")
    for code, rows in corpora.rows.items():
        if int(rows.ids.max()) >= model.n_vocab:
            raise ValueError(
                f"The text in {code} has token id {int(rows.ids.max())}, but the vocabulary "
                f"of {model.name} has {model.n_vocab} tokens: read the text with its tokenizer."
            )
        if int(rows.length.max()) > model.max_length:
            raise ValueError(
                f"A row of {code} has {int(rows.length.max())} tokens, but {model.name} takes at "
                f"most {model.max_length}: read the text in shorter blocks."
            )
        if not corpora.keep(rows.ids, rows.length)[:, 1:].any():
            raise ValueError(
                f"No token of {code} can be predicted: its rows hold one token each, or only "
                "special tokens."
            )


def _load_piece(path: Path) -> Losses:
    try:
        return Losses.load(path)
    except ValueError as error:
        raise ValueError(
            f"{error} Delete that file and run the same call again: only this piece is read again."
        ) from None
