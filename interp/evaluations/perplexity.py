"""Turn language A's neurons off, read language B: how much worse is the text predicted?

A token's loss is minus the natural logarithm of the probability that the model gives it after
those before it in its row. Every token that `Corpora.keep` counts has one, except the first of a
row, which nothing comes before. Averages are of logarithms, so that single tokens or rows cannot
take them over (Tang et al., 2024, print the same; others average perplexities): nats per token, or
bits per byte to compare languages and tokenizers. A perplexity is the exponential of such a mean.

Differences are paired: the same shards of documents, with and without. Their intervals are over
documents, that is over other text of the kind that was read, not over other random neurons.
"""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from tqdm.auto import tqdm

from interp import artifacts
from interp.activations import Batch, batches
from interp.corpora import Corpora
from interp.interventions import Edit, deactivate, intervene
from interp.model import NeuronModel
from interp.selection import NeuronSelection
from interp.uncertainty import Estimate, PermutationTest, jackknife_shards

NOTHING = "nothing"
"""Name of the model as it is, among interventions."""

Intervention = Callable[[], AbstractContextManager[Any]] | None
"""Makes the `with` block in which text is read; None: the model as it is."""

_MOST_RELABELINGS = 9999
"""Up to 7 languages have no more than these, and all are tried; beyond, as many are drawn."""


@dataclass(frozen=True)
class Losses:
    """How many nats text costs, by language and under several interventions."""

    nats: Float64[Tensor, "shard off read"]
    """Sum over the tokens of a shard; `off` are the interventions, `read` the languages."""

    tokens: Int64[Tensor, "shard read"]
    """Tokens predicted."""

    bytes: Int64[Tensor, "shard read"]
    """Bytes of UTF-8 in the text of these tokens. Where a row begins or ends within a character,
    the part of it counts as one byte or as one for each of its own: two bytes wrong at most."""

    interventions: tuple[str, ...]
    """Names along `off`; the first is what the others are compared with."""

    languages: tuple[str, ...]
    """ISO codes along `read`."""

    def __post_init__(self) -> None:
        n_off, n_read = self.nats.shape[1:]
        if (len(self.interventions), len(self.languages)) != (n_off, n_read):
            raise ValueError(
                f"nats has {n_off} interventions and {n_read} languages, and "
                f"{len(self.interventions)} and {len(self.languages)} are named."
            )
        if not self.nats.isfinite().all():
            shard, off, read = (~self.nats.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"The loss on shard {shard} of {self.languages[read]} with "
                f"{self.interventions[off]} is {self.nats[shard, off, read]}."
            )

    @property
    def loss(self) -> Float64[Tensor, "off read"]:
        """Nats per token. Zero: every token was certain; the logarithm of n: as by guessing in n.

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
        """Nats per token more than under the first intervention: [off read], 95 % intervals.

        Paired: the same shards under both. The first row is zero.
        """
        return _per_token(self.nats - self.nats[:, :1], self.tokens)

    def to_frame(self) -> pd.DataFrame:
        """A row for each intervention and language, with the interval of the increase."""
        columns = {
            "loss": self.loss,
            "bits_per_byte": self.bits_per_byte,
            "perplexity": self.perplexity,
            **_columns("increase", self.increase),
        }
        rows = [
            {
                "intervention": name,
                "read": code,
                "tokens": int(self.tokens[:, read].sum()),
                "bytes": int(self.bytes[:, read].sum()),
                **{column: each[off, read].item() for column, each in columns.items()},
            }
            for off, name in enumerate(self.interventions)
            for read, code in enumerate(self.languages)
        ]
        return pd.DataFrame(rows)

    def save(self, path: Path | str, provenance: dict[str, Any] | None = None) -> None:
        tensors = {"nats": self.nats, "tokens": self.tokens, "bytes": self.bytes}
        labels = {"interventions": list(self.interventions), "languages": list(self.languages)}
        artifacts.save(path, "Losses", tensors, labels, provenance or {})

    @staticmethod
    def load(path: Path | str) -> "Losses":
        stored = artifacts.load(path, "Losses")
        return Losses(
            stored.tensors["nats"],
            stored.tensors["tokens"],
            stored.tensors["bytes"],
            tuple(stored.labels["interventions"]),
            tuple(stored.labels["languages"]),
        )


@dataclass(frozen=True)
class DiagonalDominance:
    """Do a language's neurons matter to that language more than to the others?"""

    languages: tuple[str, ...]
    """Those that have neurons and were read; nothing else is compared."""

    own_minus_others: Estimate
    """[language] Increase on the language itself minus the mean of those on the others, when its
    neurons are off: nats per token."""

    mean: Estimate
    """The mean of these over languages; its interval is over documents, for these languages."""

    test: PermutationTest
    """Could that mean be chance? The names of the sets of neurons are dealt out anew: were sets
    and languages strangers, each set would go with each language alike, and the mean would be zero.
    That some sets do more harm, and some languages suffer more, is in every relabeling."""

    largest_in_row: tuple[str, ...]
    """Languages whose neurons increase no other language's loss as much as their own."""

    largest_in_column: tuple[str, ...]
    """Languages whose loss no other language's neurons increase as much as their own."""


@dataclass(frozen=True)
class PerplexityMatrix:
    """Language A's neurons off, language B read, beside as many random neurons."""

    losses: Losses
    """With nothing changed, then with the neurons of each language of the selection."""

    random: Float64[Tensor, "shard draw off read"]
    """Nats with random neurons in the place of each language's, as many in every layer, drawn
    among those of no language; none where n_draws was 0."""

    neurons: tuple[int, ...]
    """Neurons of each language of the selection; zero: its rows are those of the model as it is."""

    edit: tuple[str, ...]
    """What is done to each language's neurons, such as "deactivate"."""

    def __post_init__(self) -> None:
        shards, off, read = self.losses.nats.shape
        n_shards, _, n_off, n_read = self.random.shape
        if (n_shards, n_off + 1, n_read) != (shards, off, read) or not (
            len(self.neurons) == len(self.edit) == n_off
        ):
            raise ValueError(
                f"The losses are of {shards} shards, {off - 1} sets of neurons and {read} "
                f"languages, the random ones of {n_shards}, {n_off} and {n_read}, and "
                f"{len(self.neurons)} sizes and {len(self.edit)} edits are given."
            )

    @property
    def off(self) -> tuple[str, ...]:
        """Languages whose neurons were changed, along the rows."""
        return self.losses.interventions[1:]

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that were read, along the columns."""
        return self.losses.languages

    @property
    def increase(self) -> Estimate:
        """Nats per token more than with nothing changed: [off read], with 95 % intervals."""
        return _per_token(self.losses.nats[:, 1:] - self.losses.nats[:, :1], self.losses.tokens)

    @property
    def random_increase(self) -> Estimate:
        """The same for each draw of random neurons: [draw off read]."""
        return _per_token(self._random_more, self.losses.tokens)

    @property
    def control(self) -> Estimate:
        """The increase with random neurons, mean over draws: [off read]. NaN: there are none."""
        return _per_token(self._random_more.mean(dim=1), self.losses.tokens)

    @property
    def excess(self) -> Estimate:
        """The increase less that of the control, paired: [off read]. NaN: there is no control."""
        more = self.losses.nats[:, 1:] - self.losses.nats[:, :1]
        return _per_token(more - self._random_more.mean(dim=1), self.losses.tokens)

    @property
    def _random_more(self) -> Float64[Tensor, "shard draw off read"]:
        return self.random - rearrange(self.losses.nats[:, 0], "shard read -> shard 1 1 read")

    def diagonal(self, generator: torch.Generator | None = None) -> DiagonalDominance:
        """Own language against others, among the languages that have neurons and were read.

        The generator draws relabelings where there are more than 7 languages; None: one with
        seed 0.
        """
        sizes = dict(zip(self.off, self.neurons, strict=True))
        codes = tuple(code for code in self.off if sizes[code] and code in self.languages)
        if len(codes) < 2:
            raise ValueError(
                f"{len(codes)} languages have neurons and were read ({', '.join(codes)}): own "
                "against others needs two or more."
            )
        rows = [self.losses.interventions.index(code) for code in codes]
        columns = [self.languages.index(code) for code in codes]
        nats, tokens = self.losses.nats[:, :, columns], self.losses.tokens[:, columns]
        sums = {"more": nats[:, rows] - nats[:, :1], "tokens": tokens}
        square = _per_token(sums["more"], tokens).value
        others = square.clone().fill_diagonal_(-math.inf)
        return DiagonalDominance(
            codes,
            jackknife_shards(sums, _own_minus_others),
            jackknife_shards(sums, lambda total: _own_minus_others(total).mean()),
            _relabeling_test(square, generator or torch.Generator().manual_seed(0)),
            _named(codes, square.diagonal() > others.amax(dim=1)),
            _named(codes, square.diagonal() > others.amax(dim=0)),
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each cell, those of the model as it is first; intervals in columns _low, _high.

        `random` is the mean over draws, `excess` what remains of the increase beyond it.
        """
        frame = self.losses.to_frame().rename(columns={"intervention": "off"})
        frame.insert(2, "own", frame["off"] == frame["read"])
        frame.insert(3, "neurons", [size for size in (0, *self.neurons) for _ in self.languages])
        for name, estimate in (("random", self.control), ("excess", self.excess)):
            for column, each in _columns(name, estimate).items():
                first = [math.nan] * len(self.languages)
                frame[column] = [*first, *each.flatten().tolist()]
        return frame

    def save(self, path: Path | str, provenance: dict[str, Any] | None = None) -> None:
        losses = self.losses
        tensors = {
            "nats": losses.nats,
            "tokens": losses.tokens,
            "bytes": losses.bytes,
            "random": self.random,
            "neurons": torch.tensor(self.neurons, dtype=torch.int64),
        }
        labels = {"off": list(self.off), "read": list(self.languages), "edit": list(self.edit)}
        artifacts.save(path, "PerplexityMatrix", tensors, labels, provenance or {})

    @staticmethod
    def load(path: Path | str) -> "PerplexityMatrix":
        stored = artifacts.load(path, "PerplexityMatrix")
        tensors, labels = stored.tensors, stored.labels
        losses = Losses(
            tensors["nats"],
            tensors["tokens"],
            tensors["bytes"],
            (NOTHING, *labels["off"]),
            tuple(labels["read"]),
        )
        sizes = tuple(tensors["neurons"].tolist())
        return PerplexityMatrix(losses, tensors["random"], sizes, tuple(labels["edit"]))


def perplexity_matrix(
    model: NeuronModel,
    selection: NeuronSelection,
    corpora: Corpora,
    edit: Edit | Mapping[str, Edit] = deactivate,
    n_draws: int = 3,
    generator: torch.Generator | None = None,
    out: Path | str | None = None,
    progress: bool = True,
    tokens_per_batch: int = 4096,
) -> PerplexityMatrix:
    """Each language's neurons off in turn, and every language of the corpora read.

    The languages read may be others than those of the selection; read text that the selection was
    not made from. `edit` is one for all, or one per language where it has values, such as
    `{code: replace(moments, code) for code in selection.languages}`. The control costs as much as
    the matrix for each of its `n_draws`; None for `generator`: one with seed 0.

    With K languages, (1 + (1 + n_draws) · K) passes over the text, without those for languages that
    have no neurons. With `out`, every shard of every language is kept there as soon as it is
    done, the same call goes on where it was interrupted, and `matrix.safetensors` is the result.
    """
    if n_draws < 0:
        raise ValueError(f"n_draws is {n_draws}: draw 0 random sets (no control) or more.")
    if corpora.n_shards < 2:
        raise ValueError("An interval needs 2 shards or more: read the corpora with n_shards=20.")
    edits = _by_language(edit, selection.languages)
    generator = generator or torch.Generator().manual_seed(0)
    draws = [selection.random_like(generator, exclude=selection.union()) for _ in range(n_draws)]
    interventions = _interventions(model, [selection, *draws], edits)
    _check(model, corpora)
    sizes = selection.counts()
    if empty := [code for code, size in sizes.items() if size == 0]:
        warnings.warn(
            f"The selection has no neurons for {', '.join(empty)}: those rows are exactly zero.",
            stacklevel=2,
        )
    folder, plan = None, {}
    if out is not None:
        folder = Path(out)
        plan = _start(folder, _plan(model, selection, corpora, edits, draws, tokens_per_batch))
    every = _read_all(model, corpora, interventions, folder, tokens_per_batch, progress)
    n_off = len(selection.languages)
    matrix = PerplexityMatrix(
        Losses(
            every.nats[:, : n_off + 1].clone(),
            every.tokens,
            every.bytes,
            every.interventions[: n_off + 1],
            every.languages,
        ),
        rearrange(
            every.nats[:, n_off + 1 :],
            "shard (draw off) read -> shard draw off read",
            draw=n_draws,
            off=n_off,
        ).clone(),
        tuple(sizes[code] for code in selection.languages),
        tuple(edits[code].name for code in selection.languages),
    )
    if folder is not None:
        matrix.save(folder / "matrix.safetensors", plan)
    return matrix


def losses_under(
    model: NeuronModel,
    corpora: Corpora,
    interventions: Mapping[str, Intervention],
    *,
    tokens_per_batch: int = 4096,
    progress: bool = True,
) -> Losses:
    """What the text costs under each intervention, the first of which the others are compared with.

    `{"nothing": None, "pushed": lambda: intervene(model, units, edit)}`: each makes a `with` block
    anew for every shard of every language. All that are None are read once.
    """
    if not interventions:
        raise ValueError('There is no intervention: give {"nothing": None, ...}.')
    _check(model, corpora)
    return _read_all(model, corpora, interventions, None, tokens_per_batch, progress)


# ---------------------------------------------------------------- statistics


def _per_token(
    more: Float64[Tensor, "shard *set read"], tokens: Int64[Tensor, "shard read"]
) -> Estimate:
    sums = {"more": more, "tokens": tokens}
    return jackknife_shards(sums, lambda total: total["more"] / total["tokens"])


def _columns(name: str, estimate: Estimate) -> dict[str, Tensor]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _own_minus_others(total: dict[str, Tensor]) -> Float64[Tensor, " language"]:
    square = total["more"] / total["tokens"]
    own = square.diagonal()
    return own - (square.sum(dim=1) - own) / (len(square) - 1)


def _relabeling_test(
    square: Float64[Tensor, "language language"], generator: torch.Generator
) -> PermutationTest:
    """Mean of own minus others, against the same with the rows' languages dealt out anew."""
    n_languages = len(square)
    rows = torch.arange(n_languages)
    exact = math.factorial(n_languages) <= _MOST_RELABELINGS
    if exact:  # the first is the order as it is
        orders = torch.tensor(list(itertools.permutations(range(n_languages))))
    else:
        noise = torch.rand(_MOST_RELABELINGS, n_languages, generator=generator)
        orders = torch.cat([rearrange(rows, "row -> 1 row"), noise.argsort(dim=1)])
    own = square[rows, orders]
    others = (square.sum(dim=1) - own) / (n_languages - 1)
    arranged = (own - others).mean(dim=1)
    strength = arranged.abs()
    rounding = 1e-9 * square.abs().max()  # equal sums of large terms count as equal
    return PermutationTest(
        arranged[0].item(),
        (strength >= strength[0] - rounding).double().mean().item(),
        (strength >= strength.max() - rounding).double().mean().item(),
        len(orders),
        exact,
    )


def _named(codes: Sequence[str], chosen: Bool[Tensor, " language"]) -> tuple[str, ...]:
    return tuple(code for code, yes in zip(codes, chosen.tolist(), strict=True) if yes)


# ---------------------------------------------------------------- reading


def _read_all(
    model: NeuronModel,
    corpora: Corpora,
    interventions: Mapping[str, Intervention],
    folder: Path | None,
    tokens_per_batch: int,
    progress: bool,
) -> Losses:
    """Every shard of every language, each read once or taken from the folder."""
    names, n_read = tuple(interventions), len(corpora.languages)
    nats = torch.zeros(corpora.n_shards, len(names), n_read, dtype=torch.float64)
    tokens = torch.zeros(corpora.n_shards, n_read, dtype=torch.int64)
    n_bytes = torch.zeros_like(tokens)
    passes = sum(change is not None for change in interventions.values()) + (
        None in interventions.values()
    )
    total = passes * sum(int(rows.length.sum()) for rows in corpora.rows.values())
    with tqdm(
        total=total,
        unit=" tokens",
        unit_scale=True,
        desc="reading",
        disable=not progress,
        delay=2,
        leave=False,
    ) as bar:
        for shard in range(corpora.n_shards):
            for read, language in enumerate(corpora.languages):
                here = corpora.rows[language].shard == shard
                path = folder and folder / "pieces" / f"{shard:04d}-{language}.safetensors"
                if path is not None and path.exists():
                    piece = _load_piece(path)
                    assert piece.interventions == names
                    bar.update(passes * int(corpora.rows[language].length[here].sum()))
                else:
                    chosen = list(batches(corpora, language, shard, tokens_per_batch))
                    piece = _read(model, language, shard, chosen, interventions, bar)
                    if path is not None:
                        piece.save(path)
                nats[shard, :, read] = piece.nats[0, :, 0]
                tokens[shard, read] = piece.tokens[0, 0]
                n_bytes[shard, read] = piece.bytes[0, 0]
    return Losses(nats, tokens, n_bytes, names, corpora.languages)


@torch.inference_mode()
def _read(
    model: NeuronModel,
    language: str,
    shard: int,
    chosen: Sequence[Batch],
    interventions: Mapping[str, Intervention],
    bar: Any,
) -> Losses:
    """One shard of one language under every intervention: the same batches for all."""
    n_tokens = sum(int(batch.keep[:, 1:].sum()) for batch in chosen)
    sums: list[Tensor] = []
    untouched: Tensor | None = None
    for name, change in interventions.items():
        if change is None and untouched is not None:
            sums.append(untouched)
            continue
        total = torch.zeros((), dtype=torch.float64)
        with nullcontext() if change is None else change():
            for batch in chosen:
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
                bar.update(int(batch.length.sum()))
        sums.append(total)
        untouched = total if change is None else untouched
    return Losses(
        rearrange(torch.stack(sums), "off -> 1 off 1"),
        torch.tensor([[n_tokens]]),
        torch.tensor([[sum(_n_bytes(model, batch) for batch in chosen)]]),
        tuple(interventions),
        (language,),
    )


def _nats(model: NeuronModel, batch: Batch) -> Float64[Tensor, " batch"]:
    """The loss of each row, summed over its tokens that count and have one before them."""
    longest = batch.ids.shape[1]
    mask = None
    if (batch.length < longest).any():
        mask = torch.arange(longest) < rearrange(batch.length, "batch -> batch 1")
    losses = model.losses(batch.ids, mask).cpu().double()
    return losses.masked_fill(~batch.keep[:, 1:], 0).sum(dim=1)


def _n_bytes(model: NeuronModel, batch: Batch) -> int:
    """Bytes of the text of what is predicted: of all that counts, less what comes first."""

    def size(ids: Tensor) -> int:
        text = model.decode(ids.tolist())
        return len(text.encode()) - 2 * text.count("\ufffd")  # part of a character: one byte

    return sum(
        size(ids[keep]) - size(ids[:1][keep[:1]])
        for ids, keep in zip(batch.ids, batch.keep, strict=True)
    )


# ---------------------------------------------------------------- at the door


def _check(model: NeuronModel, corpora: Corpora) -> None:
    """Refuse text that the model cannot read, before anything is read."""
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer to count bytes with: give one to wrap.")
    for code, rows in corpora.rows.items():
        if int(rows.ids.max()) >= model.n_vocab:
            raise ValueError(
                f"{code} has token {int(rows.ids.max())}, and {model.name} knows {model.n_vocab}: "
                "read the text with the tokenizer of this model."
            )
        if int(rows.length.max()) > model.max_length:
            raise ValueError(
                f"A row of {code} has {int(rows.length.max())} tokens, and {model.name} takes "
                f"{model.max_length}: read the text in shorter blocks."
            )
        if not corpora.keep(rows.ids, rows.length)[:, 1:].any():
            raise ValueError(
                f"No token of {code} can be predicted: its rows hold one token each, or special "
                "tokens alone."
            )


def _interventions(
    model: NeuronModel, selections: Sequence[NeuronSelection], edits: Mapping[str, Edit]
) -> dict[str, Intervention]:
    """Nothing, every language's neurons, and every draw; refused here where they do not fit."""
    interventions: dict[str, Intervention] = {NOTHING: None}
    for number, each in enumerate(selections):
        for code in each.languages:
            name = f"random {number}: {code}" if number else code
            interventions[name] = None
            if each[code].any():
                interventions[name] = partial(intervene, model, each[code], edits[code])
                with intervene(model, each[code], edits[code]):
                    pass
    return interventions


def _by_language(edit: Edit | Mapping[str, Edit], languages: Sequence[str]) -> dict[str, Edit]:
    if isinstance(edit, Edit):
        return dict.fromkeys(languages, edit)
    if missing := [code for code in languages if code not in edit]:
        raise ValueError(
            f"There is no edit for {', '.join(missing)}: give one for every language of the "
            "selection, or a single one for all."
        )
    return {code: edit[code] for code in languages}


def _plan(
    model: NeuronModel,
    selection: NeuronSelection,
    corpora: Corpora,
    edits: Mapping[str, Edit],
    draws: Sequence[NeuronSelection],
    tokens_per_batch: int,
) -> dict[str, Any]:
    """All that the numbers depend on."""
    return {
        # The name may be a path, and a model that was moved is the same model.
        "model": {key: each for key, each in model.fingerprint.items() if key != "name"},
        "corpora": corpora.fingerprint,
        "languages read": list(corpora.languages),
        "selection": {"neurons": selection.counts(), "mask": _hash(selection.mask)},
        "edit": {
            code: {
                "name": edit.name,
                "factor": edit.factor,
                "site": edit.site,
                "values": {site: _hash(each) for site, each in edit.shift.items()},
            }
            for code, edit in edits.items()
        },
        "random neurons": [_hash(draw.mask) for draw in draws],
        "tokens_per_batch": tokens_per_batch,
    }


def _start(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Begin the folder, or make sure that it was begun with the very same things."""
    path = folder / "run.json"
    if not path.exists():
        told = plan | artifacts.provenance()
        artifacts.write_text(path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    try:
        started = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(
            f"{path} is damaged: delete it and run the same again; finished pieces are kept."
        ) from None
    if differ := [key for key in plan if started.get(key) != plan[key]]:
        raise ValueError(
            f"{folder} was started with another {', '.join(differ)}: go on with what it was "
            "started with, or give another folder."
        )
    return started


def _load_piece(path: Path) -> Losses:
    try:
        return Losses.load(path)
    except ValueError as error:
        raise ValueError(
            f"{error} Delete that file and run the same again: only this piece is read again."
        ) from None


def _hash(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return blake2b(raw.numpy().data, digest_size=16).hexdigest()
