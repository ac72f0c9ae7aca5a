"""Bytes of what a run keeps: of one piece, and of the merged results."""

import math
from dataclasses import dataclass

from interp.counting.keep import Keep
from interp.counting.statistics import STATISTICS, Statistic
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel

_SOURCE = 24
"""Assumed bytes of a row's source, such as `de.txt:118`, in a piece."""


@dataclass(frozen=True)
class PieceSizes:
    """Bytes of the tensors of one piece: one shard of one language."""

    firing: int
    """Firing counts."""

    statistics: dict[str, int]
    """Those of `interp.counting.statistics` that are kept, by name."""

    grid: int
    """Where the bins of histograms are."""

    means: int
    """Sentence means."""

    signs: int
    """One bit per prompt and neuron."""

    contexts: int
    """The strongest contexts of each neuron."""

    text: int
    """The rows that the contexts are in."""

    names: int
    """Sources of the rows, if any result is kept per row."""

    @property
    def tensors(self) -> int:
        per_row = self.means + self.signs + self.contexts + self.text
        return self.firing + sum(self.statistics.values()) + self.grid + per_row

    @staticmethod
    def of(model: NeuronModel, keep: Keep, rows: int, row_tokens: int) -> "PieceSizes":
        """Sizes for `rows` rows of `row_tokens` tokens."""
        neurons = model.n_layers * model.d_mlp

        def statistic(row: Statistic) -> int:
            tokens = 8 * isinstance(model, MixtureModel)  # those that each neuron saw
            return (row.counted + tokens) * model.n_layers * model.width(0, row.units) + 8

        units = sum(model.width(0, kind) for kind in keep.sentence_means) * model.n_layers
        by_row = bool(keep.sentence_means or keep.signs or keep.contexts)
        return PieceSizes(
            firing=8 * neurons,
            statistics={name: statistic(STATISTICS[name]) for name in keep.statistics},
            grid=8 * neurons if keep.histograms else 0,
            means=4 * units * rows,
            signs=rows * model.n_layers * math.ceil(model.d_mlp / 8) if keep.signs else 0,
            contexts=12 * neurons * keep.contexts,
            text=rows * (5 * row_tokens + 16) if keep.contexts else 0,
            names=rows * _SOURCE if by_row else 0,
        )


@dataclass(frozen=True)
class ResultSizes:
    """Bytes of the tensors of the merged results. Zero: not requested."""

    firing: int
    """Firing counts."""

    statistics: dict[str, int]
    """Those of `interp.counting.statistics` that are kept, by name."""

    grid: int
    """Where the bins of histograms are, in a file of its own too."""

    signs: int
    """One bit per prompt and neuron."""

    contexts: int
    """The strongest contexts of each neuron, and their text."""

    @staticmethod
    def of(piece: PieceSizes, n_languages: int, n_shards: int) -> "ResultSizes":
        """Sizes of the results merged from all pieces."""
        n_pieces = n_languages * n_shards
        return ResultSizes(
            firing=n_pieces * (piece.firing + 8),
            statistics={
                name: size * (n_pieces if STATISTICS[name].by_shard else n_languages)
                for name, size in piece.statistics.items()
            },
            grid=2 * piece.grid,
            signs=n_pieces * piece.signs,
            contexts=n_languages * piece.contexts + n_pieces * piece.text,
        )

    @property
    def tensors(self) -> int:
        kept = self.firing + sum(self.statistics.values()) + self.grid
        return kept + self.signs + self.contexts

    @property
    def files(self) -> int:
        """Number of files: one per result; firing counts always have one."""
        per_row = bool(self.signs) + bool(self.contexts)
        return 1 + len(self.statistics) + bool(self.grid) + per_row
