"""Sharing: which neurons fire for all languages at once, for some, for one, for none.

Wang et al. (2024), "Sharing Matters: Analysing Neurons Across Languages and Tasks in LLMs". An
example is one prompt in every language; a neuron's category on it says in how many languages it
fires at the last token. By arithmetic alone, fewer neurons fire for all languages as languages are
added, and a neuron that always fires is always shared. So every share comes with a chance baseline,
which the authors leave out: languages that fire independently at the same rates.
"""

from collections.abc import Mapping
from enum import IntEnum

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from interp.counting.batch import Neurons
from interp.counting.bits import unpack_bits
from interp.counting.cached import Cache
from interp.counting.caches import Masks, signs_at
from interp.models.bare_model import BareModel
from interp.results.words import FiresBy


class Sharing(IntEnum):
    """In how many of the languages a neuron fires.

    >>> [category.name for category in interp.Sharing]
    ['SILENT', 'SPECIFIC', 'PARTLY_SHARED', 'ALL_SHARED']
    """

    SILENT = 0
    SPECIFIC = 1
    PARTLY_SHARED = 2
    ALL_SHARED = 3


CATEGORIES = tuple(category.name.lower().replace("_", " ") for category in Sharing)
"""Names of the categories in tables and figures."""


def sharing_categories(active: Bool[Tensor, " language *unit"]) -> UInt8[Tensor, "*unit"]:
    """The `Sharing` category of each unit on one example, or on each of many.

    Silent: active in no language. Specific: in one. All-shared: in all. Partly shared: in between,
    so with two languages never.

    The caller defines active: `gate > 0`, or `output > threshold`, as `Keep` of `collect` does for
    `FiringSigns`. For one of their prompts it is `unpack_bits(signs.bits[prompt], signs.d_mlp)`,
    and for caches of TransformerLens there is `interp.scores.categories_from_caches`.

    >>> active = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()  # three languages
    >>> [interp.Sharing(code).name for code in interp.sharing_categories(active).tolist()]
    ['ALL_SHARED', 'PARTLY_SHARED', 'SPECIFIC', 'SILENT']
    """
    if active.dtype != torch.bool:
        raise ValueError(f"active is {active.dtype}, not boolean: compare values with a threshold.")
    check_several(len(active))
    number = active.sum(dim=0)
    category = torch.full_like(number, Sharing.PARTLY_SHARED, dtype=torch.uint8)
    category[number == 0] = Sharing.SILENT
    category[number == 1] = Sharing.SPECIFIC
    category[number == len(active)] = Sharing.ALL_SHARED
    return category


def categories_from_caches(
    caches: Mapping[str, Cache],
    pos: int = -1,
    *,
    keep: Masks | None = None,
    fires_by: FiresBy = "gate",
    threshold: float = 0.0,
    model: Neurons | BareModel | None = None,
) -> UInt8[Tensor, "layer batch neuron"]:
    """The `Sharing` category of each neuron at one token of each prompt, from caches.

    Row i of each cache is prompt i in that language. Prompts may differ in length: `pos` counts the
    tokens in `keep`, a mask for each language, and -1 is the last; see `interp.counting.fires`.

    >>> ids = {code: rows.ids[:4].long() for code, rows in text.rows.items()}
    >>> caches = {code: model.run_with_cache(ids[code])[1] for code in ids}
    >>> categories = interp.scores.categories_from_caches(caches)
    >>> categories.shape, bool((categories[5] == interp.Sharing.ALL_SHARED).any())
    (torch.Size([6, 4, 2048]), True)
    """
    bits, d_mlp = signs_at(
        caches, pos, keep=keep, fires_by=fires_by, threshold=threshold, model=model
    )
    by_language = rearrange(bits, "batch language layer byte -> language layer batch byte")
    return sharing_categories(unpack_bits(by_language, d_mlp))


def chance_of_categories(
    rate: Float[Tensor, " language *unit"],
) -> Float64[Tensor, " category *unit"]:
    """The probability of each category if languages fire independently, each at its own rate.

    The number of languages that fire then has the Poisson-binomial distribution, computed exactly,
    one language at a time.

    If all rates are zero or one, one category has probability 1.

    >>> interp.scores.chance_of_categories(torch.tensor([0.5, 0.5, 1.0])).tolist()
    [0.0, 0.25, 0.5, 0.25]
    """
    check_several(len(rate))
    wrong = int((~((rate >= 0) & (rate <= 1))).sum())
    if wrong:
        raise ValueError(f"{wrong:,} of {rate.numel():,} rates are NaN, below zero or above one.")
    # Row n of `number` is the probability that n of the languages so far fire.
    number = torch.zeros(len(rate) + 1, *rate.shape[1:], dtype=torch.float64, device=rate.device)
    number[0] = 1
    for language_rate in rate.double():
        one_more = number[:-1] * language_rate
        number = number * (1 - language_rate)
        number[1:] += one_more
    return torch.stack([number[0], number[1], number[2:-1].sum(dim=0), number[-1]])


def clusters_of(clusters: Int64[Tensor, " _"] | None, n_prompts: int) -> Int64[Tensor, " prompt"]:
    """The given clusters, one number per prompt; by default each prompt is its own."""
    if clusters is None:
        return torch.arange(n_prompts)
    if len(clusters) != n_prompts:
        raise ValueError(
            f"There are {n_prompts} prompts and {len(clusters)} cluster numbers: give one for each "
            "prompt."
        )
    return clusters.clone()


def check_several(n_languages: int) -> None:
    if n_languages < 2:
        raise ValueError(
            f"Sharing compares languages, and there is only {n_languages}: give two or more."
        )
