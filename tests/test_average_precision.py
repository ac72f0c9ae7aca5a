"""Average precision of many units: equal to the definition and to scikit-learn, ties included."""

import inspect
import itertools
import math
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.sentence_means import SentenceMeans
from interp.models.load import load
from interp.scores import ranks as module
from interp.scores.average_precision import (
    Precision,
    average_precision,
    measure_precision,
    roc_area,
    top_and_bottom,
)
from interp.scores.ranks import (
    positive_percentiles,
)
from interp.text.reading import read_sentences
from tests import tiny_models

TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.fixture(params=["compiled", "arrays"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of counting: numba, and whole arrays, which is also what a GPU does."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        assert module._compiled() is not None
    else:
        monkeypatch.setattr(module, "_compiled", lambda: None)
    return request.param


def precision_by_hand(values: list[float], positive: list[bool]) -> float:
    """Mean over the positives of the share of positives among all that respond as much or more."""
    shares = []
    pairs = list(zip(values, positive, strict=True))
    for value, is_positive in pairs:
        if is_positive:
            at_least = [each for other, each in pairs if other >= value]
            shares.append(sum(at_least) / len(at_least))
    return sum(shares) / len(shares)


def area_by_hand(values: list[float], positive: list[bool]) -> float:
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, is_high in zip(values, positive, strict=True)
        if is_high
        for low, is_positive in zip(values, positive, strict=True)
        if not is_positive
    ]
    return sum(wins) / len(wins)


def difficult(dtype: torch.dtype, seed: int, n: int = 60) -> Float[Tensor, "sentence unit"]:
    """Responses with all sorts of ties, signs and sizes, one sort per unit."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 12, generator=generator, dtype=torch.float64)
    tiny = torch.finfo(dtype).tiny
    noise[:, 1] = 3.5  # constant
    noise[:, 2] = torch.where(noise[:, 2] > 0, 0.0, -0.0)  # constant too
    noise[:, 3] = noise[:, 3].round()
    noise[:, 4] = noise[:, 4].clamp_min(0)  # zero for half of the sentences
    noise[:, 5] = noise[:, 5].clamp_max(-0.0)
    noise[:, 6] *= tiny / 4  # subnormal numbers
    noise[:, 7] *= torch.finfo(dtype).max / 8
    noise[:, 8] = 1 + (2 * noise[:, 8]).round() * torch.finfo(dtype).eps  # neighbors
    noise[:, 9] = -noise[:, 8]
    noise[:, 10] = -1 - noise[:, 10].abs()
    noise[:, 11] = noise[:, 11].sign() * tiny
    return noise.to(dtype)


def some_labels(n: int, n_languages: int, seed: int = 0) -> Int[Tensor, " sentence"]:
    """Languages of different sizes, the last of them with a single sentence."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) ** 1.5 * (n_languages - 1)).long()
    labels[: n_languages - 1] = torch.arange(n_languages - 1)
    labels[n // 2] = n_languages - 1
    return labels


@pytest.mark.parametrize("dtype", TYPES)
def test_both_scores_equal_their_definitions(path: str, dtype: torch.dtype):
    responses, labels = difficult(dtype, seed=1), some_labels(60, 4)
    precision, area = average_precision(responses, labels, 4), roc_area(responses, labels, 4)
    for language, unit in itertools.product(range(4), range(responses.shape[1])):
        values, positive = responses[:, unit].tolist(), (labels == language).tolist()
        expected = precision_by_hand(values, positive), area_by_hand(values, positive)
        assert precision[language, unit].item() == pytest.approx(expected[0], abs=1e-13)
        assert area[language, unit].item() == pytest.approx(expected[1], abs=1e-13)


@pytest.mark.parametrize("dtype", TYPES)
def test_both_scores_equal_those_of_scikit_learn(path: str, dtype: torch.dtype):
    metrics = pytest.importorskip("sklearn.metrics")
    responses, labels = difficult(dtype, seed=2, n=400), some_labels(400, 5)
    precision, area = average_precision(responses, labels, 5), roc_area(responses, labels, 5)
    for language, unit in itertools.product(range(5), range(responses.shape[1])):
        truth, values = (labels == language).numpy(), responses[:, unit].double().numpy()
        expected = metrics.average_precision_score(truth, values)
        assert abs(precision[language, unit].item() - expected) < 1e-12
        assert abs(area[language, unit].item() - metrics.roc_auc_score(truth, values)) < 1e-12


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.floats(width=16, allow_nan=False, allow_infinity=False)),
        min_size=1,
        max_size=40,
    ),
    st.booleans(),
)
def test_any_responses_get_what_the_definition_gives(pairs: list[tuple[int, float]], arrays: bool):
    present = sorted({label for label, _ in pairs})
    labels = torch.tensor([present.index(label) for label, _ in pairs])
    values = [value for _, value in pairs]
    with pytest.MonkeyPatch.context() as patch:
        if arrays:
            patch.setattr(module, "_compiled", lambda: None)
        for dtype in (torch.float16, torch.float32, torch.float64):
            responses = torch.tensor(values, dtype=dtype)[:, None]
            found = average_precision(responses, labels, len(present))
            for language in range(len(present)):
                expected = precision_by_hand(values, (labels == language).tolist())
                assert found[language, 0].item() == pytest.approx(expected, abs=1e-13)


def test_the_limits_by_hand(path: str):
    labels = torch.tensor([0, 0, 1, 1, 1])
    perfect, worst, constant = [9.0, 8, 3, 2, 1], [1.0, 2, 3, 4, 5], [4.0] * 5
    responses = torch.tensor([perfect, worst, constant]).T.contiguous()
    assert average_precision(responses, labels, 2)[0].tolist() == pytest.approx(
        [1, (1 / 4 + 2 / 5) / 2, 2 / 5], abs=1e-15
    )
    assert roc_area(responses, labels, 2)[0].tolist() == [1, 0, 0.5]


def test_the_least_average_precision_is_the_published_one(path: str):
    labels = (torch.arange(3000) < 500).long()
    responses = torch.arange(3000.0)[:, None]
    least = average_precision(responses, labels, 2)[1].item()
    assert least == pytest.approx(0.088559, abs=5e-7)
    assert average_precision(-responses, labels, 2)[1].item() == 1
    # With two units forced, one of each kind, the authors report a mean of 0.5443.
    assert (1 + least) / 2 == pytest.approx(0.5443, abs=5e-5)


def test_zero_ties_with_negative_zero(path: str):
    labels = torch.tensor([0, 1, 0, 1])
    for dtype in TYPES:
        signed = torch.tensor([[0.0], [-0.0], [0.0], [-0.0]], dtype=dtype)
        assert average_precision(signed, labels, 2).tolist() == [[0.5], [0.5]]


def test_one_language_alone_has_nothing_to_confuse_it_with(path: str):
    responses, labels = difficult(torch.float32, seed=3), torch.zeros(60, dtype=torch.long)
    assert (average_precision(responses, labels, 1) == 1).all()
    assert roc_area(responses, labels, 1).isnan().all()


def test_the_order_of_the_sentences_makes_no_difference(path: str):
    responses, labels = difficult(torch.float32, seed=4), some_labels(60, 4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    shuffled = average_precision(responses[order], labels[order], 4)
    torch.testing.assert_close(
        shuffled, average_precision(responses, labels, 4), rtol=0, atol=1e-14
    )


def test_renamed_languages_give_renamed_scores(path: str):
    responses, labels = difficult(torch.bfloat16, seed=5), some_labels(60, 4)
    order = torch.tensor([2, 0, 3, 1])
    expected = average_precision(responses, labels, 4)
    renamed = average_precision(responses, order[labels], 4)
    torch.testing.assert_close(renamed[order], expected, rtol=0, atol=1e-14)


def test_only_the_order_of_the_responses_counts(path: str):
    generator = torch.Generator().manual_seed(6)
    responses = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    labels = some_labels(200, 3)
    for score in (average_precision, roc_area):
        assert torch.equal(score(responses.exp(), labels, 3), score(responses, labels, 3))
    mirrored = roc_area(-responses, labels, 3)
    torch.testing.assert_close(mirrored, 1 - roc_area(responses, labels, 3), rtol=0, atol=1e-14)


def test_neighboring_numbers_do_not_tie(path: str):
    labels = torch.tensor([0, 1, 0, 1])
    for dtype in TYPES:
        for centre in (1.0, -1.0):
            step = torch.finfo(dtype).eps
            values = centre + step * torch.tensor([[4.0], [3.0], [2.0], [1.0]], dtype=torch.float64)
            assert len(values.to(dtype).unique()) == 4
            found = average_precision(values.to(dtype), labels, 2)[0].item()
            assert found == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)


def test_narrow_numbers_score_as_they_do_written_wide(path: str):
    narrow, labels = difficult(torch.bfloat16, seed=7), some_labels(60, 4)
    for dtype in (torch.float32, torch.float64):
        wide = average_precision(narrow.to(dtype), labels, 4)
        torch.testing.assert_close(wide, average_precision(narrow, labels, 4), rtol=0, atol=0)


def test_both_paths_agree():
    pytest.importorskip("numba")
    for dtype in TYPES:
        responses, labels = difficult(dtype, seed=8, n=500), some_labels(500, 6)
        with pytest.MonkeyPatch.context() as patch:
            compiled = module.precision_and_area(responses, labels, 6)
            patch.setattr(module, "_compiled", lambda: None)
            arrays = module.precision_and_area(responses, labels, 6)
        torch.testing.assert_close(compiled, arrays, rtol=0, atol=1e-14)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", TYPES)
def test_a_gpu_gives_the_same(dtype: torch.dtype):
    responses, labels = difficult(dtype, seed=9, n=500), some_labels(500, 6)
    for score in (average_precision, roc_area):
        found = score(responses.cuda(), labels, 6).cpu()
        torch.testing.assert_close(found, score(responses, labels, 6), rtol=0, atol=1e-14)


def test_without_numba_the_arrays_are_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert module._compiled.__wrapped__() is None


def test_pieces_make_no_difference(path: str, monkeypatch: pytest.MonkeyPatch):
    responses, labels = difficult(torch.float32, seed=10), some_labels(60, 4)
    whole = average_precision(responses, labels, 4)
    assert len(module._chunks(responses)) == 1
    monkeypatch.setitem(module._ENTRIES, "cpu", 5 * 60)
    assert [each.stop for each in module._chunks(responses)] == [5, 10, 15]
    assert torch.equal(average_precision(responses, labels, 4), whole)


def test_hundreds_of_labels_are_no_more_than_labels(path: str):
    labels = torch.arange(600) // 2
    for dtype in (torch.bfloat16, torch.float32):
        responses = difficult(dtype, seed=11, n=600)
        found = average_precision(responses, labels, 300)
        for language in (0, 255, 256, 299):
            positive = (labels == language).tolist()
            for unit in range(12):
                expected = precision_by_hand(responses[:, unit].tolist(), positive)
                assert found[language, unit].item() == pytest.approx(expected, abs=1e-13)


def test_the_responses_stay_as_they_are(path: str):
    responses, labels = difficult(torch.float32, seed=12), some_labels(60, 4)
    before = responses.clone()
    average_precision(responses.requires_grad_(), labels, 4)
    positive_percentiles(responses, labels, 4, (50.0,))
    assert torch.equal(responses, before)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_responses_that_cannot_be_ranked_are_refused(wrong: float):
    responses, labels = difficult(torch.float32, seed=13), some_labels(60, 4)
    responses[7, 3] = wrong
    with pytest.raises(ValueError, match=r"1 of 12 units respond with NaN or infinity, .* unit 3"):
        average_precision(responses, labels, 4)


def test_labels_that_are_no_language_are_refused():
    responses, labels = difficult(torch.float32, seed=14), some_labels(60, 4)
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=rf"1 labels are not a .* such as {wrong}.* 0 to 3"):
            average_precision(responses, labels.index_fill(0, torch.tensor([9]), wrong), 4)
    with pytest.raises(ValueError, match="Language 4 of 5 has no sentence"):
        roc_area(responses, labels, 5)
    with pytest.raises(ValueError, match="n_languages is 0"):
        average_precision(responses, labels, 0)


def test_the_percentiles_are_those_of_numpy():
    responses, labels = difficult(torch.float32, seed=15, n=101), some_labels(101, 4)
    percents = (0.0, 10.0, 50.0, 87.3, 90.0, 100.0)
    found = positive_percentiles(responses, labels, 4, percents)
    for language in range(4):
        mine = responses[labels == language].double().numpy()
        for row, percent in enumerate(percents):
            expected = np.percentile(mine, percent, axis=0)
            assert np.allclose(found[row, language], expected, rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match="give numbers from 0 to 100"):
        positive_percentiles(responses, labels, 4, (101.0,))


# ---------------------------------------------------------------- a whole run


TEXTS = {
    "en": "the cat sat on the mat and the dog ran to the tree near the old house by the lake",
    "de": "der hund lief zum baum und die katze lag auf dem dach neben dem alten haus am see",
    "es": "el perro corre hacia el arbol y el gato duerme sobre la mesa de la casa vieja del lago",
}


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> SentenceMeans:
    """Eight sentences of three languages through a grouped model: sites of three widths."""
    folder = tmp_path_factory.mktemp("run")
    for code, text in TEXTS.items():
        words = text.split()
        lines = [" ".join(words[start : start + 7]) for start in range(8)]
        (folder / f"{code}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = load(tiny_models.build("llama", folder / "model"), attention="hooked")
    corpora = read_sentences(folder, tuple(TEXTS), model, n_shards=2)
    keep = Keep(sentence_means=("k", "pre", "mlp_out"))
    return collect(model, corpora, folder / "out", keep=keep, progress=False).sentence_means


@pytest.fixture(scope="module")
def measured(means: SentenceMeans) -> Precision:
    return measure_precision(means)


def test_every_site_of_every_layer_has_its_place(means: SentenceMeans, measured: Precision):
    widths = {"k": 32, "pre": tiny_models.D_MLP, "mlp_out": tiny_models.D_MODEL}
    assert measured.sites == tuple(widths.items())
    assert measured.languages == tuple(TEXTS)
    assert measured.sentences.tolist() == [8, 8, 8]
    assert measured.average_precision.shape == (3, tiny_models.N_LAYERS, sum(widths.values()))
    for layer, kind in itertools.product(range(tiny_models.N_LAYERS), widths):
        responses, units = means.read(kind, layer), measured.units(kind)
        for found, score in (
            (measured.average_precision, average_precision),
            (measured.roc_area, roc_area),
        ):
            expected = score(responses, means.labels, 3)
            assert torch.equal(found[:, layer, units], expected)
        for percent in (50.0, 90.0):
            expected = positive_percentiles(responses, means.labels, 3, (percent,))[0].float()
            assert torch.equal(measured.percentile(percent)[:, layer, units], expected)


def test_the_median_is_what_a_unit_gives_on_the_language(means: SentenceMeans, measured: Precision):
    responses = means.read("pre", 1)[means.labels == 2]
    expected = np.median(responses.numpy(), axis=0)
    assert np.allclose(measured.percentile()[2, 1, measured.units("pre")], expected, atol=1e-7)


def test_the_result_comes_back_from_its_file(measured: Precision, tmp_path: Path):
    measured.save(tmp_path / "precision.safetensors", {"note": "made up"})
    again = Precision.load(tmp_path / "precision.safetensors")
    for name in ("average_precision", "roc_area", "percentiles", "sentences"):
        assert torch.equal(getattr(again, name), getattr(measured, name))
    for name in ("percents", "languages", "sites"):
        assert getattr(again, name) == getattr(measured, name)


def test_one_site_of_one_layer_is_held_at_a_time(
    means: SentenceMeans, monkeypatch: pytest.MonkeyPatch
):
    alive: list[weakref.ref] = []
    read = SentenceMeans.read

    def watched(self: SentenceMeans, kind: str, layer: int) -> Tensor:
        assert [each() is None for each in alive] == [True] * len(alive)
        values = read(self, kind, layer)
        alive.append(weakref.ref(values))
        return values

    monkeypatch.setattr(SentenceMeans, "read", watched)
    measure_precision(means)
    assert len(alive) == 3 * tiny_models.N_LAYERS


def test_what_was_not_measured_is_refused(measured: Precision):
    with pytest.raises(ValueError, match="'q' was not measured, only k, pre, mlp_out"):
        measured.units("q")
    with pytest.raises(ValueError, match=r"Percentile 10.0 was not measured, only 50.0, 90.0"):
        measured.percentile(10.0)
    with pytest.raises(ValueError, match="Shapes disagree"):
        Precision(
            average_precision=measured.average_precision,
            roc_area=measured.roc_area,
            percentiles=measured.percentiles,
            percents=(50.0,),
            sentences=measured.sentences,
            languages=measured.languages,
            sites=measured.sites,
        )


# ---------------------------------------------------------------- selecting


def test_the_top_and_the_bottom_are_taken_per_language():
    score = torch.tensor([[0.5, 0.9, 0.1, 0.7, 0.2, 0.6], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    assert top_and_bottom(score, 4).int().tolist() == [[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 1, 1]]
    assert top_and_bottom(score, 2).int().tolist() == [[0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1]]
    assert top_and_bottom(score, 6).all()


def test_ties_go_to_the_lower_unit_and_no_unit_is_taken_twice():
    tied = torch.full((1, 7), 0.3)
    assert top_and_bottom(tied, 4).int().tolist() == [[1, 1, 1, 1, 0, 0, 0]]
    score = torch.tensor([[0.1, 1.0, 0.1, 1.0, 0.1, 1.0]])
    assert top_and_bottom(score, 4).int().tolist() == [[1, 1, 1, 1, 0, 0]]
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 5, (3, 200), generator=generator).double()
    for n in (2, 10, 120, 200):
        chosen = top_and_bottom(coarse, n)
        assert chosen.sum(dim=1).tolist() == [n, n, n]
        for row in range(3):
            units = range(200)
            top = sorted(units, key=lambda unit, row=row: (-coarse[row, unit], unit))[: n // 2]
            left = [unit for unit in units if unit not in top]
            bottom = sorted(left, key=lambda unit, row=row: (coarse[row, unit], unit))[: n // 2]
            assert chosen[row].nonzero().flatten().tolist() == sorted(top + bottom)


@pytest.mark.parametrize("n", [0, 3, 8, -2])
def test_a_number_that_cannot_be_halved_or_is_not_there_is_refused(n: int):
    with pytest.raises(ValueError, match=rf"n is {n} of 6 units: give an even number from 2 to 6"):
        top_and_bottom(torch.rand(2, 6), n)


def test_one_half_alone_is_the_half_of_both():
    score = torch.tensor([[0.5, 0.9, 0.1, 0.7, 0.2, 0.6], [0.3, 0.3, 0.3, 0.3, 0.3, 0.3]])
    assert top_and_bottom(score, 4, "top").int().tolist() == [
        [0, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 0],
    ]
    assert top_and_bottom(score, 4, "bottom").int().tolist() == [
        [0, 0, 1, 0, 1, 0],
        [0, 0, 1, 1, 0, 0],
    ]
    with pytest.raises(ValueError, match="which is 'left': give one of both, top, bottom"):
        inspect.unwrap(top_and_bottom)(score, 2, "left")  # past the tests' own check of types


def test_scores_that_are_none_are_refused():
    score = torch.rand(2, 6)
    score[1, 3] = math.nan
    with pytest.raises(ValueError, match="1 of 12 scores are NaN or infinite"):
        top_and_bottom(score, 2)


def test_planted_units_are_found_and_the_decoys_are_not(generator: torch.Generator):
    labels = torch.arange(240) % 4
    responses = torch.randn(240, 500, generator=generator)
    mine = (labels == 1).float()
    responses[:, 17] += 6 * mine  # detects language 1
    responses[:, 401] -= 6 * mine  # is silent on it alone
    responses[:, 60] += 100  # a decoy: responds most of all, to all alike
    responses[:, 61] *= 50  # a decoy: strongest single responses
    responses[:, 62] += 6 * (labels <= 1)  # a decoy: two languages together, as a script would
    precision = average_precision(responses, labels, 4)
    assert top_and_bottom(precision, 2)[1].nonzero().flatten().tolist() == [17, 401]
    assert precision[1, 17] > 0.98
    assert precision[1, 62] < 0.7


# ---------------------------------------------------------------- what chance gives
