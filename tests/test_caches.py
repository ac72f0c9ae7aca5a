"""Statistics from caches are those of `collect`, on every architecture; what cannot be counted is
refused."""

import weakref
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.counting.bits import unpack_bits
from interp.counting.caches import fires, firing_rate, units_at
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.observe import batches
from interp.counting.run import Run
from interp.counting.sentence_means import SentenceMeans
from interp.counting.signs import FiringSigns
from interp.counting.stats import ActivationMoments, FiringStats
from interp.models.load import wrap
from interp.models.neuron_model import NeuronModel
from interp.prompts.contributions import contribution_score, effective_score
from interp.results.words import FiresBy
from interp.scores.average_precision import measure_precision
from interp.scores.sharing import Sharing, categories_from_caches, sharing_categories
from interp.selections.select import select_by_entropy
from interp.text.corpora import Corpora
from interp.text.reading import prompt_rows, read_corpora, read_sentences
from interp.text.sources import read_prompts
from tests import test_model
from tests.campaigns.kills import LANGUAGES, made_up
from tests.test_model import classic_only, every_architecture
from tests.tiny_models import PAD

checkpoint, open_model, classic = test_model.checkpoint, test_model.open_model, test_model.classic

Caches = dict[str, list[Any]]
Masks = dict[str, list[Tensor]]
MEANS = ("pre", "resid_post")
AT_ONCE = 100_000
"""More tokens than a shard holds, so that a shard is one batch, as it is one cache."""


def cached(model: NeuronModel, corpora: Corpora) -> tuple[Caches, Masks]:
    """A cache and a mask for each shard, by plain TransformerLens."""
    caches, masks = {}, {}
    for code in corpora.languages:
        shards = [list(batches(corpora, code, n, AT_ONCE)) for n in range(corpora.n_shards)]
        assert {len(shard) for shard in shards} == {1}
        caches[code] = [run(model, one.ids, one.length) for (one,) in shards]
        masks[code] = [one.keep for (one,) in shards]
    return caches, masks


def run(model: NeuronModel, ids: Tensor, length: Tensor | None = None) -> Any:
    position = torch.arange(ids.shape[1])
    padding = {} if length is None else {"attention_mask": (position < length[:, None]).long()}
    with torch.no_grad():
        return model.bridge.run_with_cache(ids, **padding)[1]


def sentences(model: NeuronModel) -> Corpora:
    """Rows of different lengths, padded, each with a token of beginning."""
    return read_sentences(
        made_up(16), LANGUAGES, model, n_shards=2, bos="document", max_length=40, hygiene="off"
    )


def collected(model: NeuronModel, corpora: Corpora, keep: Keep) -> Run:
    return collect(model, corpora, keep=keep, tokens_per_batch=AT_ONCE, progress=False)


def by_row(means: SentenceMeans, code: str, kind: Any, layer: int) -> Tensor:
    return means.read(kind, layer)[means.labels == means.languages.index(code)]


def check_statistics(model: NeuronModel) -> None:
    """Every statistic from caches against `collect`, to the last count and the last bit."""
    text = sentences(model)
    assert len(set(text.rows["de"].length.tolist())) > 1
    run = collected(model, text, Keep(moments=True, sentence_means=MEANS))
    caches, keep = cached(model, text)
    stats = FiringStats.from_caches(caches, keep=keep, model=model)
    assert stats.languages == run.firing.languages
    assert torch.equal(stats.tokens, run.firing.tokens)
    assert torch.equal(stats.fired, run.firing.fired)
    assert select_by_entropy(stats, 0.05, 0.5) == select_by_entropy(run.firing, 0.05, 0.5)
    moments = ActivationMoments.from_caches(caches, keep=keep, model=model)
    assert torch.equal(moments.sums, run.moments.sums)
    assert torch.equal(moments.tokens, run.moments.tokens)
    means = SentenceMeans.from_caches(caches, MEANS, keep=keep)
    for code in LANGUAGES:
        for kind in MEANS:
            for layer in range(model.n_layers):
                found = by_row(means, code, kind, layer)
                wanted = by_row(run.sentence_means, code, kind, layer)
                assert torch.equal(found.sort(dim=0).values, wanted.sort(dim=0).values)
    rates = torch.stack([firing_rate(caches[code][0], keep[code][0]) for code in LANGUAGES])
    assert torch.equal(rates, run.firing.shards([0]).rate)


def check_signs(model: NeuronModel) -> None:
    """Signs from caches of prompts of different lengths against `collect`."""
    short = {code: [line[:40].strip() for line in lines] for code, lines in made_up(6).items()}
    prompts = read_prompts(short, LANGUAGES)
    rows = prompt_rows(prompts, model, bos="document")
    settings: tuple[tuple[FiresBy, float], ...] = (("gate", 0.0), ("output", 0.05))
    for fires_by, threshold in settings:
        wanted = collected(model, rows, Keep(signs=fires_by, signs_above=threshold)).signs
        # As in `collect`, rows are passed shortest first; here they are put back in their order.
        caches, keep = cached(model, rows)
        order = {
            code: torch.tensor(next(batches(rows, code, 0, AT_ONCE)).rows).argsort()
            for code in LANGUAGES
        }
        found = FiringSigns.from_caches(
            {code: reordered(caches[code][0], order[code]) for code in LANGUAGES},
            keep={code: keep[code][0][order[code]] for code in LANGUAGES},
            prompts=rows.rows["de"].source,
            fires_by=fires_by,
            threshold=threshold,
        )
        assert sorted(found.prompts) == list(wanted.prompts)
        place = torch.tensor([found.prompts.index(prompt) for prompt in wanted.prompts])
        assert torch.equal(found.bits[place], wanted.bits)
        assert (found.d_mlp, found.fires_by, found.threshold) == (model.d_mlp, fires_by, threshold)


def reordered(cache: Any, order: Tensor) -> dict[str, Tensor]:
    """Plain tensors by hook name, with the rows in another order."""
    return {name: cache[name][order] for name in cache if "mlp" in name or "resid" in name}


# ---------------------------------------------------------------- the same as from text


@pytest.mark.slow
@every_architecture
def test_statistics_are_those_of_collect(name: str, open_model: Callable[..., Any]):
    check_statistics(open_model(name))


@pytest.mark.slow
@every_architecture
def test_signs_are_those_of_collect(name: str, open_model: Callable[..., Any]):
    check_signs(open_model(name))


@classic_only
def test_a_hooked_transformer_gives_the_same(classic: Callable[..., Any]):
    model = wrap(classic())
    check_statistics(model)
    check_signs(model)


@pytest.mark.slow
def test_of_babel_too():
    model = interp.load("babel", dtype=torch.float32)
    text = read_corpora(
        "babel", LANGUAGES, model, block_length=32, n_shards=2, tokens=256, progress=False
    )
    caches, keep = cached(model, text)
    wanted = collected(model, text, Keep()).firing
    stats = FiringStats.from_caches(caches, keep=keep)
    assert torch.equal(stats.fired, wanted.fired)
    assert torch.equal(stats.tokens, wanted.tokens)
    assert select_by_entropy(stats, 0.03) == select_by_entropy(wanted, 0.03)


def test_precision_of_means_in_memory_is_that_of_files(open_model: Callable[..., Any]):
    model = open_model("qwen2")
    text = sentences(model)
    caches, keep = cached(model, text)
    means = SentenceMeans.from_caches(caches, MEANS, keep=keep)
    wanted = collected(model, text, Keep(sentence_means=MEANS)).sentence_means
    found, other = (measure_precision(each, progress=False) for each in (means, wanted))
    assert torch.equal(found.average_precision, other.average_precision)
    assert torch.equal(found.percentiles, other.percentiles)
    assert found.sites == other.sites
    assert means.n_layers == wanted.n_layers == model.n_layers
    assert repr(means) == "SentenceMeans(de 7, en 7, fr 6 sentences; at pre, resid_post; in memory)"


# ---------------------------------------------------------------- laws, on made-up caches


def made(
    seed: int = 0, n_rows: int = 4, n_positions: int = 6, d_mlp: int = 24, n_layers: int = 2
) -> dict[str, Tensor]:
    """A dict in place of an ActivationCache, with random gates and outputs."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"blocks.{layer}.mlp.{name}": torch.randn(n_rows, n_positions, d_mlp, generator=generator)
        for layer in range(n_layers)
        for name in ("hook_pre", "hook_post")
    }


def some_mask(seed: int = 0, n_rows: int = 4, n_positions: int = 6) -> Tensor:
    """An attention mask, padded on either side, in which each row has two tokens or more."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(n_rows, n_positions, dtype=torch.long)
    for row in mask:
        first, last = torch.randperm(n_positions, generator=generator)[:2].sort().values.tolist()
        row[first : last + 1] = 1
    return mask


def spoiled(cache: dict[str, Tensor], mask: Tensor, value: float) -> dict[str, Tensor]:
    return {name: each.masked_fill(mask[..., None] == 0, value) for name, each in cache.items()}


def test_rates_and_signs_are_those_of_the_definition():
    """Slowly, token by token."""
    cache, mask = made(), some_mask()
    rate, last, second = firing_rate(cache, mask), fires(cache, -1, mask), fires(cache, 1, mask)
    output = fires(cache, -2, mask, fires_by="output", threshold=0.5)
    outputs = units_at(cache, "post", -2, mask)
    for layer in range(2):
        gate, post = (cache[f"blocks.{layer}.mlp.hook_{name}"] for name in ("pre", "post"))
        for neuron in range(24):
            fired, n_tokens = 0, 0
            for row in range(4):
                kept = [place for place in range(6) if mask[row, place]]
                fired += sum(float(gate[row, place, neuron]) > 0 for place in kept)
                n_tokens += len(kept)
                assert bool(last[layer, row, neuron]) == (gate[row, kept[-1], neuron] > 0)
                assert bool(second[layer, row, neuron]) == (gate[row, kept[1], neuron] > 0)
                assert bool(output[layer, row, neuron]) == (post[row, kept[-2], neuron] > 0.5)
                assert outputs[row, layer, neuron] == post[row, kept[-2], neuron]
            assert float(rate[layer, neuron]) == fired / n_tokens


@pytest.mark.parametrize("value", [1e4, float("nan"), float("inf")])
def test_padding_never_counts(value: float):
    caches, mask = {"de": made(0), "en": made(1)}, {"de": some_mask(0), "en": some_mask(1)}
    dirty = {code: spoiled(cache, mask[code], value) for code, cache in caches.items()}
    clean, other = (FiringStats.from_caches(each, keep=mask) for each in (caches, dirty))
    assert torch.equal(clean.fired, other.fired)
    assert int(clean.tokens[0, 0]) == int(mask["de"].sum())
    clean, other = (FiringSigns.from_caches(each, keep=mask) for each in (caches, dirty))
    assert torch.equal(clean.bits, other.bits)
    clean, other = (SentenceMeans.from_caches(each, keep=mask) for each in (caches, dirty))
    assert torch.equal(clean.read("pre", 1), other.read("pre", 1))


def test_the_order_of_rows_makes_no_difference():
    caches, mask = {"de": made(0), "en": made(1)}, {"de": some_mask(0), "en": some_mask(1)}
    order = torch.tensor([2, 0, 3, 1])
    turned = {code: {k: v[order] for k, v in cache.items()} for code, cache in caches.items()}
    masks = {code: each[order] for code, each in mask.items()}
    here = FiringStats.from_caches(caches, keep=mask)
    there = FiringStats.from_caches(turned, keep=masks)
    assert torch.equal(here.fired, there.fired)
    here = FiringSigns.from_caches(caches, keep=mask)
    there = FiringSigns.from_caches(turned, keep=masks)
    assert torch.equal(here.bits[order], there.bits)


def test_shards_add_up_to_the_whole_whatever_their_sizes():
    """A cache of four rows, or its rows in shards of unequal numbers and lengths."""
    cache, mask = made(), some_mask()
    parts = [{k: v[rows] for k, v in cache.items()} for rows in (slice(0, 1), slice(1, 4))]
    parts[1] = {k: torch.nn.functional.pad(v, (0, 0, 0, 3)) for k, v in parts[1].items()}
    masks = [mask[:1], torch.nn.functional.pad(mask[1:], (0, 3))]
    whole = FiringStats.from_caches({"de": cache}, keep={"de": mask})
    shards = FiringStats.from_caches({"de": parts}, keep={"de": masks})
    assert (whole.n_shards, shards.n_shards) == (1, 2)
    assert torch.equal(whole.total, shards.total)
    assert torch.equal(whole.tokens.sum(0), shards.tokens.sum(0))


def test_the_planted_neuron_is_found_from_caches():
    """Neuron 7 of layer 1 fires for French alone; its decoy 9 fires for all."""
    caches: dict[str, list[dict[str, Tensor]]] = {}
    for seed, code in enumerate(("de", "en", "fr")):
        cache = made(seed, n_rows=8)
        for name, gates in cache.items():
            cache[name] = gates.where(gates.abs() > 0.3, gates.abs())  # no neuron is rare
        cache["blocks.1.mlp.hook_pre"][..., 7] = 1.0 if code == "fr" else -1.0
        cache["blocks.1.mlp.hook_pre"][..., 9] = 1.0
        caches[code] = [{k: v[half] for k, v in cache.items()} for half in (slice(4), slice(4, 8))]
    stats = FiringStats.from_caches(caches)
    assert select_by_entropy(stats, fraction=1 / 48).triples() == [(2, 1, 7)]


@pytest.mark.parametrize("pos", [-1, 0])
def test_categories_are_those_of_the_definition(pos: int):
    """In how many languages the neuron fires, counted neuron by neuron."""
    codes = ("de", "en", "fr")
    caches = {code: made(seed, n_positions=6 + seed) for seed, code in enumerate(codes)}
    keep = {code: some_mask(seed, n_positions=6 + seed) for seed, code in enumerate(codes)}
    found = categories_from_caches(caches, pos, keep=keep)
    assert found.shape == (2, 4, 24)
    seen = set()
    for layer in range(2):
        gates = {code: caches[code][f"blocks.{layer}.mlp.hook_pre"] for code in codes}
        for row in range(4):
            at = {code: keep[code][row].nonzero().flatten()[pos] for code in codes}
            for neuron in range(24):
                n = sum(bool(gates[code][row, at[code], neuron] > 0) for code in codes)
                category = [Sharing.SILENT, Sharing.SPECIFIC, Sharing.PARTLY_SHARED][min(n, 2)]
                category = Sharing.ALL_SHARED if n == 3 else category
                assert int(found[layer, row, neuron]) == category
                seen.add(category)
    assert seen == set(Sharing)


def test_categories_of_caches_are_those_of_signs(open_model: Callable[..., Any]):
    """From parallel prompts of different lengths, through `collect` and through caches."""
    model = open_model("llama")
    short = {code: [line[:40].strip() for line in lines] for code, lines in made_up(6).items()}
    rows = prompt_rows(read_prompts(short, LANGUAGES), model)
    signs = collected(model, rows, Keep(signs="gate")).signs
    caches = {c: run(model, each.ids.long(), each.length) for c, each in rows.rows.items()}
    keep = {code: rows.keep(each.ids, each.length) for code, each in rows.rows.items()}
    found = categories_from_caches(caches, keep=keep)
    number = {prompt: row for row, prompt in enumerate(rows.rows["de"].source)}
    for bits, prompt in zip(signs.bits, signs.prompts, strict=True):
        wanted = sharing_categories(unpack_bits(bits, signs.d_mlp))
        different = found[:, number[prompt]] != wanted  # rounding, as batches differ
        assert int(different.sum()) <= 1


def test_scores_of_a_cache_are_those_of_each_prompt(open_model: Callable[..., Any]):
    model = open_model("qwen2")
    ids = torch.arange(10, 26).reshape(2, 8)
    outputs = units_at(run(model, ids), "post")
    contribution, effective = (
        contribution_score(model, outputs),
        effective_score(model, outputs, 30),
    )
    for row, alone in enumerate(outputs):
        assert torch.equal(contribution[row], contribution_score(model, alone))
        assert torch.equal(effective[row], effective_score(model, alone, 30))
    with torch.no_grad():  # what a neuron writes, by the model's own weights
        written = outputs[1, 2, 5] * model.w_out(2)[5]
    assert float(contribution[1, 2, 5]) == pytest.approx(float(written.norm()), rel=1e-4)
    target = float(written @ model.bridge.W_E[30])
    assert float(effective[1, 2, 5]) == pytest.approx(target, rel=1e-3, abs=1e-5)


def test_one_layer_at_a_time_is_held():
    """A cache that makes each tensor when it is asked for: all but the last are gone by then."""
    held: list[weakref.ref[Tensor]] = []

    class Fresh(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            alive = [each for each in held if each() is not None]
            assert len(alive) <= 1
            values = super().__getitem__(name).clone()
            held.append(weakref.ref(values))
            return values

    cache = Fresh(made(n_layers=6))
    FiringStats.from_caches({"de": [cache, cache]}, keep={"de": [some_mask(), some_mask()]})
    fires(cache)
    assert len(held) > 12


# ---------------------------------------------------------------- the first token


def test_the_beginning_of_text_is_not_counted_unless_asked_for(open_model: Callable[..., Any]):
    model = open_model("llama")
    tokens = {code: model.bridge.to_tokens(lines[:5]) for code, lines in made_up().items()}
    caches = {code: run(model, ids, (ids != PAD).sum(dim=1)) for code, ids in tokens.items()}
    attended = {code: (ids != PAD).long() for code, ids in tokens.items()}
    assert all((ids[:, 0] == model.bos_id).all() for ids in tokens.values())
    for keep in (attended, None):
        with pytest.raises(ValueError, match=r"All 15 rows .* model\.text_mask\(tokens\), or"):
            FiringStats.from_caches(caches, keep=keep)
    text = {code: model.text_mask(ids) for code, ids in tokens.items()}
    assert [(ids == model.bos_id).sum().item() for ids in tokens.values()] == [5, 5, 5]
    stats = FiringStats.from_caches(caches, keep=text)
    both = FiringStats.from_caches(caches, keep=attended, special_tokens=True)
    assert torch.equal(both.tokens, stats.tokens + 5)
    first = FiringStats.from_caches(
        caches,
        keep={code: ids == model.bos_id for code, ids in tokens.items()},
        special_tokens=True,
    )
    assert torch.equal(both.fired, stats.fired + first.fired)
    firing_rate(caches["de"], text["de"])
    with pytest.raises(ValueError, match="All 5 rows begin with the same token"):
        firing_rate(caches["de"], attended["de"])
    assert torch.equal(fires(caches["de"], -1, attended["de"]), fires(caches["de"], -1, text["de"]))


# ---------------------------------------------------------------- refused


def without(cache: Mapping[str, Tensor], *ends: str) -> dict[str, Tensor]:
    return {name: each for name, each in cache.items() if not name.endswith(ends)}


def stats_of(**settings: Any) -> Callable[[], object]:
    return lambda: FiringStats.from_caches(**settings)


def by(name: str, cache: dict[str, Tensor]) -> Any:
    """As if made by a model of this name."""

    class Made(dict[str, Tensor]):
        model = SimpleNamespace(cfg=SimpleNamespace(model_name=name))

    return Made(cache)


RESIDUAL = {"blocks.1.hook_resid_post": torch.zeros(4, 6, 8)}

REFUSED = {
    "a hook is missing": (
        stats_of(caches={"de": [made(), without(made(), "1.mlp.hook_pre", "post") | RESIDUAL]}),
        r"^Cache 1 of de lacks blocks\.1\.mlp\.hook_pre: call run_with_cache with "
        r'names_filter=lambda name: name\.endswith\("mlp\.hook_pre"\), or with no filter\.$',
    ),
    "the output instead of the gate": (
        stats_of(caches={"de": without(made(), "pre")}),
        r"lacks blocks\.0\.mlp\.hook_pre, and hook_post does not replace it, since in a gated MLP",
    ),
    "no hook of a layer at all": (
        stats_of(caches={"de": {"hook_embed": torch.zeros(2, 3, 4)}}),
        r"The cache of de lacks blocks\.0\.mlp\.hook_pre",
    ),
    "two sites": (
        lambda: SentenceMeans.from_caches({"de": made()}, ["pre", "resid_post"]),
        r'lacks blocks\.0\.hook_resid_post: .* name\.endswith\(\("mlp\.hook_pre", '
        r'"hook_resid_post"\)\)',
    ),
    "other numbers of layers": (
        stats_of(caches={"de": made(), "en": made(1, n_layers=3)}),
        "The cache of de has 2 layers of 24 units at pre and the cache of en 3 of 24: stat",
    ),
    "other widths": (
        stats_of(caches={"de": made(), "en": made(1, d_mlp=16)}),
        "The cache of de has 2 layers of 24 units at pre and the cache of en 2 of 16: stat",
    ),
    "layers of other widths": (
        stats_of(caches={"de": made() | {"blocks.1.mlp.hook_pre": torch.randn(4, 6, 25)}}),
        r"has 25 units at blocks\.1\.mlp\.hook_pre, and layer 0 has 24 there",
    ),
    "layers of other passes": (
        stats_of(caches={"de": made() | {"blocks.1.mlp.hook_pre": torch.randn(4, 7, 24)}}),
        r"\(4, 6\) at blocks\.0\.mlp\.hook_pre and \(4, 7\) at blocks\.1",
    ),
    "models of other names": (
        stats_of(caches={"de": by("gpt2", made()), "en": by("bloom", made(1))}),
        "The cache of de was made by gpt2 and the cache of en by bloom: statistics are of one mod",
    ),
    "no axis for rows": (
        stats_of(caches={"de": {name: each[0] for name, each in made().items()}}),
        r"holds blocks\.0\.mlp\.hook_pre as \[6, 24\], .* remove_batch_dim=False",
    ),
    "a mask of another shape": (
        stats_of(caches={"de": made()}, keep={"de": torch.ones(4, 5).long()}),
        r"has 4 rows of 6 positions and its mask has shape \[4, 5\]",
    ),
    "token ids in place of a mask": (
        stats_of(caches={"de": made()}, keep={"de": torch.full((4, 6), 17)}),
        "The mask of the cache of de holds 17, .* not token ids",
    ),
    "masks of other languages": (
        stats_of(caches={"de": made()}, keep={"en": some_mask()}),
        "There are caches of de and masks of en",
    ),
    "too few masks": (
        stats_of(caches={"de": [made(), made(1)]}, keep={"de": some_mask()}),
        "de has 2 caches and 1 masks",
    ),
    "unequal shards": (
        stats_of(caches={"de": [made(), made(1)], "en": made(2)}),
        r"The numbers of caches differ \(de 2, en 1\): each cache is a shard",
    ),
    "no cache": (stats_of(caches={}), "There is no cache of any language: give a mapping"),
    "no cache of one": (stats_of(caches={"de": made(), "en": []}), "There is no cache of en"),
    "no token that counts": (
        lambda: firing_rate(made(), torch.zeros(4, 6).long()),
        "No token of the cache counts",
    ),
    "a row without tokens": (
        lambda: FiringSigns.from_caches(
            {"de": made()}, keep={"de": torch.tensor([1, 1, 0, 1])[:, None].expand(4, 6)}
        ),
        "The cache of de has no token -1 in row 2, where 0 tokens count",
    ),
    "a token that is not there": (lambda: fires(made(), 6), "no token 6 in row 0, where 6 tokens"),
    "unequal numbers of prompts": (
        lambda: categories_from_caches({"de": made(), "en": made(1, n_rows=3)}),
        r"The numbers of rows differ \(de 4, en 3\): row i must be prompt i",
    ),
    "unequal numbers of ids": (
        lambda: FiringSigns.from_caches({"de": made()}, prompts=["one"]),
        "There are 1 prompts and 4 rows in each language",
    ),
    "one language alone": (
        lambda: categories_from_caches({"de": made()}),
        "Sharing compares languages, and there is only 1",
    ),
    "not a number": (
        stats_of(caches={"de": spoiled(made(), some_mask(), float("nan"))}),
        r"The cache of de has a NaN or infinite activation in blocks\.0\.mlp\.hook_pre, row 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_sentence(case: str):
    call, match = REFUSED[case]
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert str(error.value).endswith(".")
    assert ". " not in str(error.value)


def test_a_cache_of_another_model_is_refused(open_model: Callable[..., Any]):
    model, ids = open_model("llama"), torch.arange(10, 26).reshape(2, 8)
    for other, match in (
        (made(n_layers=3), "has 24 units at .*, and .* has 160 there: it was made by another"),
        (made(n_layers=2), "has 2 layers and .* 3: it was made by another model, or without"),
        (run(open_model("qwen2"), ids), "was made by .*, and the model is "),
    ):
        with pytest.raises(ValueError, match=match):
            FiringStats.from_caches({"de": other}, model=model)


def test_rounding_is_warned_of():
    narrow = {name: each.bfloat16() for name, each in made().items()}
    with pytest.warns(UserWarning, match=r"The model of the cache is in torch\.bfloat16"):
        fires(narrow)
