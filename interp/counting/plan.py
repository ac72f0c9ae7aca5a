"""What a run will cost in memory, disk and FLOPs, from a model's config and the run's sizes.

Disk sizes are exact except for file headers. Memory and work are estimates from known shapes and a
few measured or assumed constants; `RunPlan.to_frame` says which.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from interp.counting.keep import FIRING_ALONE, Keep
from interp.counting.loss_effects import AT_ONCE
from interp.counting.sizes import PieceSizes, ResultSizes
from interp.counting.statistics import STATISTICS
from interp.counting.stats import IN_MEMORY
from interp.models.any_model import AnyModel, as_model
from interp.models.load import outline
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.results.display import Cells, Shown, counted
from interp.results.terminal import listing
from interp.text.corpora import Corpora

_HEADER = 1024
"""Assumed bytes of a file's header: names, shapes, labels, provenance."""

_ROW = 200
"""Assumed bytes of a row of text in memory, besides its tokens: its source and numbers."""

_READING = 20
"""Assumed bytes per token of the language being read: its documents, and their tokens twice."""

_WORKSPACE = 48 << 20
"""Measured: bytes that torch keeps for its kernels on a CPU."""

_MLP_COPIES, _RESIDUAL_COPIES = 4, 6
"""Measured: tensors as wide as the MLP, and as wide as the residual stream, held at the peak of a
layer."""


_SCORE_COPIES, _KEPT_OF_SCORES = 4, 3
"""Estimated: tensors as large as all scores of attention that are held in a layer whose heads can
be read, and that a backward pass needs of it."""

_KEPT_OF_MLP, _KEPT_OF_RESIDUAL = 7, 14
"""Estimated: such tensors of every layer that a backward pass needs."""


@dataclass(frozen=True)
class RunPlan(Shown):
    """What `collect` will cost. Sizes are in bytes; memory excludes the imported library.

    >>> plan = interp.counting.plan_run(model, n_languages=3, tokens=640, n_shards=5, row_tokens=64)
    >>> f"{plan.disk / 2**20:.1f} MiB for {plan.neurons:,} neurons"
    '2.8 MiB for 12,288 neurons'
    >>> plan.hours(teraflops=1.0) < 0.001
    True
    """

    model: str
    """The model's name."""

    architecture: str
    """The Hugging Face class that loads it."""

    n_layers: int
    """Number of layers."""

    d_mlp: int
    """Neurons per layer."""

    gated: bool
    """Whether the MLP has a linear branch besides the gate."""

    dtype: torch.dtype
    """Dtype of weights and activations."""

    parameters: int
    """Number of parameters, embeddings included."""

    n_languages: int
    """Number of languages."""

    n_shards: int
    """Shards per language."""

    rows: int
    """Rows of text per piece: one shard of one language."""

    row_tokens: int
    """Tokens per row."""

    weights: int
    """Bytes of the weights, on any device."""

    activations: int
    """Peak bytes of one forward pass and of counting it, on the device."""

    piece: PieceSizes
    """Bytes of one piece."""

    flops: float
    """Floating-point operations of all passes; a multiply-add counts as two. Excludes the
    unembedding, which is run for effects on the loss alone, and attention to later tokens."""

    @property
    def neurons(self) -> int:
        return self.n_layers * self.d_mlp

    @property
    def tokens(self) -> int:
        """Tokens read per language."""
        return self.rows * self.n_shards * self.row_tokens

    @property
    def counters(self) -> int:
        """Bytes of the counters of the piece being read, each on its layer's device."""
        return self.piece.tensors

    @property
    def text(self) -> int:
        """CPU bytes of all text as tokens."""
        return self.n_languages * (4 * self.tokens + _ROW * self.rows * self.n_shards)

    @property
    def reading(self) -> int:
        """CPU bytes needed to tokenize one language, before the first pass."""
        return _READING * self.tokens

    @property
    def results(self) -> int:
        """Peak CPU bytes of merging the pieces."""
        whole = ResultSizes.of(self.piece, self.n_languages, self.n_shards)
        # Checking takes a byte per count; counts too large for memory are copied piece by piece.
        in_memory = whole.firing <= IN_MEMORY
        counts = whole.firing + whole.firing // 8 if in_memory else 2 * self.piece.tensors
        contexts = 2 * whole.contexts  # those of every label, and of all in one
        largest = max(counts, *whole.statistics.values(), whole.signs, contexts)
        return largest + self.piece.tensors

    @property
    def selecting(self) -> int:
        """Peak CPU bytes of `interp find` by LAPE, which needs neither the model nor the text."""
        counts = ResultSizes.of(self.piece, self.n_languages, self.n_shards).firing
        rates = self.n_languages * self.piece.firing
        # All counts and those without a shard, or of counts that stay on disk the sums.
        held = counts + counts * (self.n_shards - 1) // self.n_shards
        held = held if counts <= IN_MEMORY else rates
        # Rates; how often each was selected, four bytes; and six masks of a byte.
        return held + rates + rates // 2 + 6 * rates // 8

    @property
    def disk(self) -> int:
        """Bytes of the run folder: pieces and merged results."""
        whole = ResultSizes.of(self.piece, self.n_languages, self.n_shards)
        n_pieces = self.n_languages * self.n_shards
        pieces = n_pieces * (self.piece.tensors + 8 + self.piece.names)
        return pieces + whole.tensors + _HEADER * (n_pieces + 1 + whole.files)

    @property
    def memory(self) -> int:
        """Peak bytes if model and statistics are all on one machine's CPU, where neurons are then
        selected too."""
        peak = max(self.reading, self.passing, self.results + _WORKSPACE)
        return max(self.weights + self.text + peak, self.selecting + _WORKSPACE)

    @property
    def passing(self) -> int:
        """Bytes of a pass and its counters: with the weights, everything on a GPU."""
        return self.activations + self.counters

    def hours(self, teraflops: float) -> float:
        """Hours of forward passes at `teraflops` · 10¹² useful operations per second."""
        if not teraflops > 0:
            raise ValueError(f"teraflops is {teraflops}: give a number above 0.")
        return self.flops / teraflops / 1e12 / 3600

    def to_frame(self) -> pd.DataFrame:
        """One row per quantity: its value, its unit, and where the number comes from."""
        return pd.DataFrame(self._rows(), columns=["quantity", "value", "unit", "from"])

    def _rows(self) -> list[tuple[str, int | float, str, str]]:
        name = str(self.dtype).removeprefix("torch.")
        return [
            ("neurons", self.neurons, "", f"config: {self.n_layers} layers of {self.d_mlp:,}"),
            ("parameters", self.parameters, "", "config"),
            ("weights", self.weights, "bytes", f"config, in {name}; less if quantized"),
            ("activations", self.activations, "bytes", "shapes, and copies measured on a CPU"),
            ("counters", self.counters, "bytes", "what is kept per neuron, one piece"),
            ("text in memory", self.text, "bytes", f"4 per token, {_ROW} assumed per row"),
            ("text being read", self.reading, "bytes", f"{_READING} assumed per token, 1 language"),
            ("results while merging", self.results, "bytes", "what is kept, all pieces"),
            ("selecting neurons", self.selecting, "bytes", "counts and rates of all labels"),
            ("peak memory", self.memory, "bytes", "on one CPU, without the library"),
            ("memory on a GPU", self.weights + self.passing, "bytes", "weights, pass, counters"),
            ("disk", self.disk, "bytes", f"what is kept, {_HEADER} assumed per file"),
            ("tokens", self.tokens * self.n_languages, "", "of all languages"),
            ("forward passes", self.flops, "FLOP", "config: 2 per weight and token, attention"),
        ]

    def __repr__(self) -> str:
        return (
            f"RunPlan({self.model}: {counted(self.n_languages, 'language')} of {self.tokens:,} "
            f"tokens; memory {readable(self.memory, 'bytes')}, disk "
            f"{readable(self.disk, 'bytes')}, {readable(self.flops, 'FLOP')})"
        )

    def _cells(self) -> Cells:
        rows = [
            [quantity, readable(value, unit), source]
            for quantity, value, unit, source in self._rows()
        ]
        return Cells(("", "", "from"), rows, self._head())

    def _head(self) -> str:
        kind = "gated" if self.gated else "ungated"
        return (
            f"{self.model} ({self.architecture}): {self.n_layers} layers of {self.d_mlp:,} {kind} "
            f"neurons; {self.n_languages} languages, {self.tokens:,} tokens in each, in "
            f"{self.n_shards} shards"
        )

    def __str__(self) -> str:
        return self.table()

    def table(self, width: int = 100) -> str:
        """For a terminal of `width` columns: a row per quantity.

        >>> plan = interp.counting.plan_run("babel", n_languages=6, tokens=1_000_000)
        >>> print(plan.table().splitlines()[2])
        neurons                         12,288  config: 6 layers of 2,048
        """
        rows = [
            [quantity, f"{readable(value, unit):>15}", source]
            for quantity, value, unit, source in self._rows()
        ]
        return "\n".join([self._head(), "", *listing(rows, width)])


def plan_run(
    model: str | Path | AnyModel,
    n_languages: int,
    tokens: int,
    *,
    n_shards: int = 20,
    row_tokens: int = 256,
    tokens_per_batch: int = 4096,
    keep: Keep = FIRING_ALONE,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> RunPlan:
    """What it costs to collect `tokens` tokens in each of `n_languages` languages.

    A name is resolved as in `load`, and only its config is read; a loaded model works too.
    `row_tokens` is the block length, or the mean length of a sentence or prompt. Memory is that of
    one process that reads everything. Quantized weights count at full size, and offloaded layers
    as if all were in memory.

    >>> plan = interp.counting.plan_run("babel", n_languages=6, tokens=1_000_000)
    >>> print(plan)
    babel (...): 6 layers of 2,048 gated neurons; 6 languages, 998,400 tokens in each, in 20 shards
    ...
    >>> more = interp.counting.plan_run("babel", 6, 1_000_000, keep=interp.Keep(contexts=5))
    >>> more.disk > 2 * plan.disk
    True
    """
    if isinstance(model, str | Path):
        model = outline(model, dtype=dtype, trust_remote_code=trust_remote_code)
    opened = as_model(model)
    _check(n_languages, n_shards, row_tokens, tokens_per_batch)
    rows = tokens // (n_shards * row_tokens)
    if rows < 1:
        raise ValueError(
            f"{tokens:,} tokens in {n_shards} shards are less than one row of {row_tokens} each: "
            f"plan for {n_shards * row_tokens:,} or more."
        )
    read = rows * n_shards * row_tokens
    parameters = opened._parameters.values()
    return RunPlan(
        model=opened.name,
        architecture=str(opened.architecture),
        n_layers=opened.n_layers,
        d_mlp=opened.d_mlp,
        gated=opened.gated,
        dtype=opened.dtype,
        parameters=sum(parameter.numel() for parameter in parameters),
        n_languages=n_languages,
        n_shards=n_shards,
        rows=rows,
        row_tokens=row_tokens,
        weights=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        activations=_activations(opened, keep, row_tokens, min(tokens_per_batch, read)),
        piece=PieceSizes.of(opened, keep, rows, row_tokens),
        flops=_flops(opened, row_tokens) * (3 if keep.of_gradients else 1) * read * n_languages,
    )


def plan_of(model: NeuronModel, corpora: Corpora, keep: Keep, tokens_per_batch: int) -> RunPlan:
    """What it costs to collect from this text."""
    n_languages = len(corpora.languages)
    n_rows = sum(len(rows.length) for rows in corpora.rows.values())
    row_tokens = max(1, sum(corpora.tokens().values()) // n_rows)
    return plan_run(
        model,
        n_languages,
        max(n_rows // n_languages, corpora.n_shards) * row_tokens,
        n_shards=corpora.n_shards,
        row_tokens=row_tokens,
        tokens_per_batch=tokens_per_batch,
        keep=keep,
    )


def _activations(model: NeuronModel, keep: Keep, row_tokens: int, tokens_per_batch: int) -> int:
    """Peak bytes of a layer, reached where gate and linear branch are multiplied."""
    tokens = max(row_tokens, tokens_per_batch // row_tokens * row_tokens)
    width = torch.empty(0, dtype=model.dtype).element_size()
    neurons = model.active if isinstance(model, MixtureModel) else model.d_mlp
    held = width * (_MLP_COPIES * neurons + _RESIDUAL_COPIES * model.d_model)
    held += neurons * sum(STATISTICS[name].holds for name in keep.statistics)
    scores = width * _scores(model, keep, row_tokens)
    held = max(held, _SCORE_COPIES * scores + width * _RESIDUAL_COPIES * model.d_model)
    if keep.of_gradients:
        kept = _backward(model) + _KEPT_OF_SCORES * model.n_layers * scores
        held = max(held, kept * min(1, max(AT_ONCE, row_tokens) / tokens))
    fixed = sum(STATISTICS[name].fixed for name in keep.statistics)
    return round(tokens * held) + _WORKSPACE + fixed


def _scores(model: NeuronModel, keep: Keep, row_tokens: int) -> int:
    """Scores of attention per token, which are in memory where its heads can be read."""
    of_heads = any(STATISTICS[name].units == "head" for name in keep.statistics)
    hooked = model.attention == "hooked" or of_heads
    return model.width(0, "head") * row_tokens if hooked else 0


def _backward(model: NeuronModel) -> int:
    """Bytes per token of a pass whose gradients are followed back: what every layer computes, kept
    until then, and the logits with their gradient."""
    width = torch.empty(0, dtype=model.dtype).element_size()
    neurons = model.active if isinstance(model, MixtureModel) else model.d_mlp
    layer = width * (_KEPT_OF_MLP * neurons + _KEPT_OF_RESIDUAL * model.d_model)
    return model.n_layers * layer + 3 * 4 * model.n_vocab


def _flops(model: NeuronModel, row_tokens: int) -> float:
    """FLOPs per token: two per weight of a matrix that is not an embedding, plus attention. Of a
    mixture's experts, as many as a token is routed to."""
    language_model = model.bridge.original_model
    inner = [
        module for module in language_model.modules() if isinstance(module, torch.nn.Embedding)
    ]
    outer = language_model.get_output_embeddings()
    tables = {id(table) for module in (*inner, outer) if module for table in module.parameters()}
    share = model.share_chosen if isinstance(model, MixtureModel) else 1
    matrices = sum(
        parameter.numel() * (share if parameter.ndim == 3 else 1)
        for parameter in model._parameters.values()
        if parameter.ndim >= 2 and id(parameter) not in tables
    )
    context = (row_tokens + 1) / 2  # mean number of tokens attended to
    return 2.0 * matrices + 4.0 * context * model.n_layers * model.width(0, "q")


def _check(n_languages: int, n_shards: int, row_tokens: int, tokens_per_batch: int) -> None:
    given = {
        "n_languages": n_languages,
        "n_shards": n_shards,
        "row_tokens": row_tokens,
        "tokens_per_batch": tokens_per_batch,
    }
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more.")


def readable(value: int | float, unit: str) -> str:
    """Bytes and FLOPs with three significant digits."""
    if unit != "bytes":
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g} {unit}"
    for name in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {name}"
        value /= 1024
    return f"{value:,.3g} TiB"
