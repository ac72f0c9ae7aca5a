"""Sharing by gate and by output, at other tokens than the last, and beside distances."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from interp.counting.collect import collect
from interp.counting.counters import firing_kind
from interp.counting.keep import Keep
from interp.counting.signs import FiringSigns
from interp.evaluations.category_ablation import categories_at
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.prompts.ending import Ending
from interp.results.words import FiresBy
from interp.scores.sharing import Sharing, sharing_categories
from interp.scores.sharing_profile import sharing_profile
from interp.scores.token_sharing import TokenSharing, kept_over_tokens, sharing_over_tokens
from interp.text.distances import listed_distances, read_distances
from interp.text.languages import LANGUAGES
from interp.text.reading import prompt_rows, read_corpora
from interp.text.sources import Prompts
from interp.text.tokens import prompt_ids
from tests import tiny_models
from tests.tiny_models import D_MLP, N_LAYERS

CODES = ("en", "de", "es")
PROMPTS = Prompts(
    ("first", "second", "third"),
    {
        "en": ("the other day", "in the city", "never in the quiet"),
        "de": ("der andere Tag", "in der Stadt", "nie in den Tag"),
        "es": ("el otro dia", "en la ciudad", "nunca en el fin de la mesa"),
    },
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NeuronModel]:
    """With a linear branch, and without one."""
    folder = tmp_path_factory.mktemp("models")
    return {name: load(tiny_models.build(name, folder / name)) for name in ("llama", "gpt2")}


def values_of(model: NeuronModel, text: str, kind: str) -> Tensor:
    """[layer pos neuron] at the tokens of the text, by plain hooks."""
    caught: list[Tensor] = []

    def look(values: Tensor, hook: object) -> None:
        caught.append(values[0].detach().clone())

    sites = [(model.site(layer, kind), look) for layer in range(model.n_layers)]
    with torch.no_grad(), model.hooks(sites):
        model.body(torch.tensor([prompt_ids(model, text)]))
    return torch.stack(caught)[:, len(model.prefix_ids) :]


def collected(
    model: NeuronModel, folder: Path, signs: FiresBy = "gate", above: float = 0.0
) -> FiringSigns:
    rows = prompt_rows(PROMPTS, model, n_shards=2)
    keep = Keep(signs=signs, signs_above=above)
    return collect(model, rows, folder, keep=keep, progress=False).signs


# ---------------------------------------------------------------- by what a neuron fires


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("threshold", [0.0, 0.02])
def test_signs_are_of_the_gate_or_of_the_output_and_above_the_threshold(
    name, threshold, models, tmp_path
):
    model = models[name]
    for source, kind in (("gate", "pre"), ("output", "post")):
        signs = collected(model, tmp_path / source, source, threshold)
        assert (signs.fires_by, signs.threshold) == (source, threshold)
        profile = sharing_profile(signs, torch.Generator(), n_draws=0)
        assert (profile.fires_by, profile.threshold) == (source, threshold)
        assert set(profile.to_frame()["fires_by"]) == {source}
        for row, code in enumerate(signs.languages):
            for id, text in zip(PROMPTS.ids, PROMPTS.texts[code], strict=True):
                expected = values_of(model, text, kind)[:, -1] > threshold
                fires = signs.fires(1)[signs.prompts.index(id), row]
                assert 0 < expected[1].sum() < D_MLP
                assert (fires != expected[1]).sum() <= 1  # rounding at the threshold


@pytest.mark.slow
def test_without_a_linear_branch_gate_and_output_have_the_same_signs(models, tmp_path):
    found = {
        name: [collected(models[name], tmp_path / f"{name}-{of}", of) for of in SOURCES]
        for name in models
    }
    assert torch.equal(found["gpt2"][0].bits, found["gpt2"][1].bits)
    assert not torch.equal(found["llama"][0].bits, found["llama"][1].bits)


SOURCES = ("gate", "output")


def test_categories_at_the_end_of_a_prompt_follow_the_source(models):
    model = models["llama"]
    texts = [PROMPTS.texts[code][0] for code in CODES]
    ends = [
        Ending(model, torch.tensor(prompt_ids(model, text)), kinds=("pre", "post"))
        for text in texts
    ]
    for source, kind in zip(SOURCES, ("pre", "post"), strict=True):
        fires = torch.stack([values_of(model, text, kind)[:, -1] > 0 for text in texts])
        different = categories_at(ends, source) != sharing_categories(fires)
        assert different.sum() <= 1
    assert not torch.equal(categories_at(ends), categories_at(ends, "output"))


def test_signs_that_cannot_be_are_refused(models, tmp_path):
    model = models["llama"]
    with pytest.raises(ValueError, match="The firing threshold is nan"):
        collected(model, tmp_path / "nan", above=math.nan)
    first = tmp_path / "first"
    collected(model, first)
    with pytest.raises(ValueError, match="was started with another wanted"):
        collected(model, first, above=0.1)


@pytest.mark.slow
def test_a_model_in_16_bits_says_what_that_does_to_signs(tmp_path):
    folder = tiny_models.build("llama", tmp_path / "model")
    for dtype in (torch.bfloat16, torch.float16):
        model = load(folder, dtype=dtype)
        with pytest.warns(
            UserWarning, match=rf"is in {dtype}: rounding decides whether a neuron close .* fires"
        ):
            signs = collected(model, tmp_path / str(dtype))
        assert len(signs.prompts) == 3
        with pytest.warns(UserWarning, match="whether a neuron close to the threshold fires"):
            sharing_over_tokens(model, prompt_rows(PROMPTS, model))


# ---------------------------------------------------------------- across tokens


def slow_kept(fires: list[Bool[Tensor, "pos neuron"]], neuron: int) -> float:
    """Every way to take one token of each language."""

    def category(tokens: tuple[int, ...]) -> int:
        number = sum(bool(each[token, neuron]) for each, token in zip(fires, tokens, strict=True))
        return 3 if number == len(fires) else min(number, 2)

    last = category(tuple(len(each) - 1 for each in fires))
    ways = list(itertools.product(*(range(len(each)) for each in fires)))
    return sum(category(way) == last for way in ways) / len(ways)


def test_how_often_a_category_is_kept_equals_trying_every_way_to_take_tokens(generator):
    rates = torch.tensor([0.2, 0.5, 0.9])
    fires = [
        torch.rand(n, 30, generator=generator) < rate
        for n, rate in zip((4, 3, 5), rates, strict=True)
    ]
    fires[0][:, 0], fires[1][:, 0], fires[2][:, 0] = True, True, True
    found = kept_over_tokens(fires)
    assert found[0] == 1.0
    assert found.tolist() == pytest.approx([slow_kept(fires, neuron) for neuron in range(30)])
    assert found.min() < 0.5


def test_a_neuron_that_fires_at_the_last_token_alone_keeps_nothing_elsewhere():
    last_alone = torch.tensor([[0], [0], [0], [1]]).bool()
    assert kept_over_tokens([last_alone] * 2).item() == pytest.approx(1 / 16)
    assert kept_over_tokens([~last_alone] * 2).item() == pytest.approx(1 / 16)
    assert kept_over_tokens([last_alone, last_alone[-1:]]).item() == pytest.approx(1 / 4)


@pytest.mark.parametrize("source", SOURCES)
def test_what_a_pass_finds_is_what_single_prompts_give(source, models):
    model, kind = models["llama"], {"gate": "pre", "output": "post"}[source]
    found = sharing_over_tokens(model, prompt_rows(PROMPTS, model, n_shards=2), fires_by=source)
    assert found.prompts == PROMPTS.ids
    assert (found.count.sum(dim=-1) == D_MLP).all()
    torch.testing.assert_close(found.drawn.sum(dim=-1), torch.full((3, N_LAYERS), D_MLP).double())
    for place in range(3):
        fires = [values_of(model, PROMPTS.texts[code][place], kind) > 0 for code in CODES]
        for layer in range(N_LAYERS):
            here = [each[layer] for each in fires]
            kept = kept_over_tokens(here)
            last = sharing_categories(torch.stack([each[-1] for each in here]))
            for each in Sharing:
                mine = last == each
                assert abs(found.count[place, layer, each] - mine.sum()) <= 1
                expected = pytest.approx(kept[mine].sum().item(), abs=1.0)
                assert found.kept[place, layer, each].item() == expected
            never = torch.stack([~each.any(dim=0) for each in here]).sum(dim=1)
            assert (found.never[place, :, layer] - never).abs().max() <= 1
    frame = found.to_frame()
    row = frame.iloc[3]
    assert (row["layer"], row["category"]) == (0, "all shared")
    total = found.kept[:, 0, 3].sum() / found.count[:, 0, 3].sum()
    assert row["keeps"] == pytest.approx(total.item())
    assert row["low"] <= row["keeps"] <= row["high"]


def test_the_share_that_keeps_a_category_is_a_ratio_of_means_and_so_is_its_interval():
    """Of eight neurons of one prompt four keep it, of two of another both: six of ten."""
    prompts = torch.tensor([8, 2])
    count = torch.stack([prompts, 10 - prompts], dim=-1)
    kept = torch.stack([torch.tensor([4.0, 2.0]), (10 - prompts).double()], dim=-1).double()
    found = TokenSharing(
        count=rearrange(count, "prompt category -> prompt 1 category"),
        kept=rearrange(kept, "prompt category -> prompt 1 category"),
        drawn=rearrange(kept, "prompt category -> prompt 1 category"),
        never=torch.zeros(2, 1, 1, dtype=torch.int64),
        clusters=torch.arange(2),
        prompts=("a", "b"),
        languages=("en",),
        d_mlp=10,
    ).keeps()
    assert found.value.tolist() == [[pytest.approx(0.6), pytest.approx(1.0)]]
    # To first order: 0.6 + (4 - 0.6 · 8) / 5 = 0.44 and 0.6 + (2 - 0.6 · 2) / 5 = 0.76.
    assert found.standard_error.tolist() == [[pytest.approx(0.16), pytest.approx(0.0)]]


def test_neurons_that_fire_by_the_token_keep_less_than_those_that_fire_by_the_prompt(models):
    """Half of the layer is made to fire at all tokens, or at none."""
    model = models["llama"]
    rows = prompt_rows(PROMPTS, model)

    def by_prompt(values: Tensor, hook: object) -> Tensor:
        held = values.clone()
        held[..., : D_MLP // 2] = torch.where(torch.arange(D_MLP // 2) % 2 == 0, 1.0, -1.0)
        return held

    plain = sharing_over_tokens(model, rows)
    with model.hooks([(model.site(0, "pre"), by_prompt)]):
        held = sharing_over_tokens(model, rows)
    assert held.never[:, :, 0].min() >= D_MLP // 4
    for each in (Sharing.SILENT, Sharing.ALL_SHARED):
        assert held.kept[:, 0, each].sum() >= 3 * D_MLP / 4
        assert held.keeps().value[0, each] > plain.keeps().value[0, each]


def test_tokens_of_what_are_no_parallel_prompts_are_refused(models, tmp_path):
    model = models["llama"]
    rows = prompt_rows(PROMPTS, model)
    with pytest.raises(
        ValueError, match="fires_by is one of gate, activation, output, not 'value'"
    ):
        getattr(firing_kind, "__wrapped__", firing_kind)("value")
    with pytest.raises(ValueError, match="There are 3 prompts and 2 cluster numbers"):
        getattr(sharing_over_tokens, "__wrapped__", sharing_over_tokens)(
            model, rows, clusters=torch.arange(2)
        )
    texts = {code: [f"a word and {n} more. " * 20 for n in "123"] for code in ("en", "de")}
    packed = read_corpora(texts, ("en", "de"), model, block_length=16, n_shards=2, progress=False)
    with pytest.raises(ValueError, match="these are packed blocks"):
        sharing_over_tokens(model, packed)


# ---------------------------------------------------------------- distances


def test_listed_distances_count_branch_family_and_script():
    distance = listed_distances(("en", "de", "fr", "bg", "hi", "zh", "ja", "eu"))
    assert distance[0].tolist() == [0, 0, 1, 2, 2, 3, 3, 2]
    assert torch.equal(distance, distance.T)
    assert not distance.diagonal().any()
    every = listed_distances(tuple(LANGUAGES))
    assert set(every.unique().tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_families_that_are_far_apart_in_the_list_are_so_in_the_published_table(shared: Path):
    codes = ("en", "de", "fr", "es", "zh", "ja", "vi", "id")
    published = read_distances(
        shared / "data" / "relations" / "uriel_distances.csv", codes, "genetic"
    )
    upper = torch.triu_indices(8, 8, offset=1)
    both = torch.stack([listed_distances(codes)[tuple(upper)], published[tuple(upper)]])
    assert torch.corrcoef(both)[0, 1] > 0.7


def test_a_table_of_distances_that_cannot_be_read_says_why(tmp_path: Path):
    path = tmp_path / "table.csv"
    with pytest.raises(FileNotFoundError, match=r"table\.csv is missing: give a table with lang1"):
        read_distances(path, ("en", "de"))
    path.write_text("one,two,syntactic\nen,de,0.1\n")
    with pytest.raises(ValueError, match="has the columns one, two, syntactic, not lang1"):
        read_distances(path, ("en", "de"))
    path.write_text("lang1,lang2,syntactic\nen,de,near\n")
    with pytest.raises(ValueError, match="syntactic of en and de is 'near', which is not a number"):
        read_distances(path, ("en", "de"))
