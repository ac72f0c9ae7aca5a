"""How the effect of switching neurons off differs between two models."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from interp.evaluations.perplexity import PerplexityMatrix
from interp.inference.two_runs import between, in_both
from interp.results.frames import interval_columns


def effect_change(
    before: PerplexityMatrix, after: PerplexityMatrix, *, paired: bool = False
) -> pd.DataFrame:
    """One row per label: the increase of its loss with its own neurons off, in two models.

    In nats per token; `change` is the second minus the first, with 95 % intervals. `paired`: both
    matrices were measured on the same shards of text.

    >>> german, text_in_german = neurons.languages_only(["de"]), text.languages_only(["de"])
    >>> matrix = interp.perplexity_matrix(
    ...     model, german, text_in_german, n_draws=0, progress=False
    ... )
    >>> interp.evaluations.effect_change(matrix, matrix, paired=True)["change"].tolist()
    [0.0]
    """
    codes = in_both(_own(before), _own(after), "switched off and read")
    sums = [_sums(matrix, codes) for matrix in (before, after)]

    def more(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
        return _increase(b) - _increase(a)

    first, second = (
        _increase({name: shards.sum(dim=0) for name, shards in run.items()}) for run in sums
    )
    change = between(sums[0], sums[1], more, paired=paired)
    columns = interval_columns("change", change)
    return pd.DataFrame(
        {"language": codes, "before": first.tolist(), "after": second.tolist()}
        | {name: values.tolist() for name, values in columns.items()}
    )


def _own(matrix: PerplexityMatrix) -> list[str]:
    return [code for code in matrix.off if code in matrix.languages]


def _sums(matrix: PerplexityMatrix, codes: Sequence[str]) -> dict[str, Tensor]:
    """Nats that each label's text costs more with its own neurons off, and its tokens."""
    rows = [matrix.losses.interventions.index(code) for code in codes]
    columns = [matrix.languages.index(code) for code in codes]
    nats = matrix.losses.nats
    own = torch.stack(
        [nats[:, row, column] for row, column in zip(rows, columns, strict=True)], dim=1
    )
    return {"more": own - nats[:, 0, columns], "tokens": matrix.losses.tokens[:, columns]}


def _increase(total: Mapping[str, Tensor]) -> Tensor:
    return total["more"] / total["tokens"]
