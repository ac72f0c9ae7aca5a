"""The authors' own artefacts: their published masks, and the selection from real counts.

The files are not part of the package. What everybody can test is kept in tests/facts: how many
neurons of a mask belong to which languages in which layer, and the counts of some neurons. Where
the files themselves are needed, they are looked for in $POLYNEURON_SHARED, or in the folder
`shared` beside the checkout, and without them these tests are skipped.
"""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from interp.counting.stats import FiringStats
from interp.scores.lape import busy_threshold, language_entropy
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select_by_entropy
from tests.published_masks import kept_mask

SHARED = Path(os.environ.get("POLYNEURON_SHARED", Path(__file__).parents[2] / "shared"))
MASKS = SHARED / "data" / "lape_masks"
COUNTS = SHARED / "data" / "nju_counts" / "mistral_mgsm_prefix.npz"

needs_masks = pytest.mark.skipif(not MASKS.is_dir(), reason=f"{MASKS} is not there")
needs_counts = pytest.mark.skipif(not COUNTS.is_file(), reason=f"{COUNTS} is not there")

LANGUAGES = ("en", "zh", "fr", "es", "vi", "id", "ja")

# What the published files contain. `pairs`: above the diagonal common neurons, below it Jaccard.
PUBLISHED = {
    "LLaMA-2-7B": {
        "size": (32, 11008),
        "union": 3523,
        "memberships": 5024,
        "counts": [95, 583, 1022, 838, 836, 1068, 582],
        "exclusive": [40, 220, 573, 381, 334, 603, 245],
        "histogram": [2396, 856, 193, 58, 15, 5],
        "mean_jaccard": 0.069,
        "pairs": [
            [95, 18, 30, 27, 15, 21, 20],
            [0.027, 583, 35, 56, 145, 84, 217],
            [0.028, 0.022, 1022, 336, 104, 91, 54],
            [0.030, 0.041, 0.220, 838, 85, 120, 33],
            [0.016, 0.114, 0.059, 0.053, 836, 324, 120],
            [0.018, 0.054, 0.046, 0.067, 0.205, 1068, 73],
            [0.030, 0.229, 0.035, 0.024, 0.092, 0.046, 582],
        ],
        "first_quarter": [0.242, 0.280, 0.277, 0.288, 0.367, 0.234, 0.265],
        "last_quarter": [0.495, 0.319, 0.463, 0.494, 0.304, 0.441, 0.285],
        "union_quarters": [0.274, 0.422],
        "peak": (0, 768),
    },
    "BLOOM-7B": {
        "size": (30, 16384),
        "union": 4915,
        "memberships": 6070,
        "counts": [445, 653, 680, 918, 551, 2823],
        "exclusive": [163, 442, 313, 488, 266, 2463],
        "histogram": [4135, 503, 184, 88, 5],
        "mean_jaccard": 0.071,
        "pairs": [
            [445, 70, 135, 138, 68, 92],
            [0.068, 653, 68, 92, 67, 65],
            [0.136, 0.054, 680, 222, 96, 113],
            [0.113, 0.062, 0.161, 918, 107, 159],
            [0.073, 0.059, 0.085, 0.079, 551, 141],
            [0.029, 0.019, 0.033, 0.044, 0.044, 2823],
        ],
        "first_quarter": [0.000, 0.003, 0.000, 0.000, 0.002, 0.000],
        "last_quarter": [0.908, 0.926, 0.934, 0.952, 0.947, 0.988],
        "union_quarters": [0.000, 0.974],
        "peak": (29, 1393),
    },
    "Mistral-7B": {
        "size": (32, 14336),
        "union": 4588,
        "memberships": 6022,
        "counts": [76, 1190, 919, 838, 1554, 1445],
        "exclusive": [40, 746, 533, 442, 766, 846],
        "histogram": [3373, 1019, 173, 23],
        "mean_jaccard": 0.053,
        "pairs": [
            [76, 16, 18, 15, 8, 12],
            [0.013, 1190, 19, 32, 350, 175],
            [0.018, 0.009, 919, 276, 100, 45],
            [0.017, 0.016, 0.186, 838, 54, 88],
            [0.005, 0.146, 0.042, 0.023, 1554, 468],
            [0.008, 0.071, 0.019, 0.040, 0.185, 1445],
        ],
        "first_quarter": [0.184, 0.086, 0.021, 0.031, 0.023, 0.030],
        "last_quarter": [0.289, 0.599, 0.715, 0.736, 0.791, 0.810],
        "union_quarters": [0.042, 0.755],
        "peak": (28, 1072),
    },
}

each_model = pytest.mark.parametrize("model", PUBLISHED)


def languages_of(model: str) -> tuple[str, ...]:
    return LANGUAGES[: len(PUBLISHED[model]["counts"])]


def published(model: str) -> NeuronSelection:
    n_neurons = PUBLISHED[model]["size"][1]
    return NeuronSelection.from_lape_pth(
        MASKS / f"{model}.neuron.pth", languages_of(model), n_neurons
    )


def to_three_digits(value: float) -> object:
    return pytest.approx(value, abs=0.000501)


@each_model
def test_a_published_mask_has_the_published_sizes(model: str):
    selection, facts = kept_mask(model), PUBLISHED[model]
    assert (selection.n_layers, selection.n_units) == facts["size"]
    assert list(selection.counts().values()) == facts["counts"]
    assert tuple(selection.counts()) == languages_of(model)
    assert selection.mask.sum() == facts["memberships"]
    assert selection.union().sum() == facts["union"]
    assert facts["union"] == round(0.01 * selection.n_layers * selection.n_units)
    histogram = selection.languages_per_neuron().flatten().bincount().tolist()
    assert histogram[1:] == facts["histogram"]
    # Two sums that the numbers above must obey, whoever counted them.
    assert sum(facts["histogram"]) == facts["union"]
    times = range(1, len(facts["histogram"]) + 1)
    assert (
        sum(n * k for n, k in zip(facts["histogram"], times, strict=True)) == (facts["memberships"])
    )
    assert selection.shared().sum() == sum(facts["histogram"][1:])
    alone = selection.mask & (selection.languages_per_neuron() == 1)
    assert alone.sum(dim=(1, 2)).tolist() == facts["exclusive"]


@each_model
def test_a_published_mask_has_the_published_overlaps(model: str):
    selection, pairs = kept_mask(model), PUBLISHED[model]["pairs"]
    overlap, jaccard = selection.overlap().tolist(), selection.jaccard().tolist()
    for row in range(len(pairs)):
        for column in range(len(pairs)):
            if row <= column:
                assert overlap[row][column] == overlap[column][row] == pairs[row][column]
            else:
                assert jaccard[row][column] == jaccard[column][row]
                assert jaccard[row][column] == to_three_digits(pairs[row][column])
        assert jaccard[row][row] == 1
    above = torch.tensor(jaccard).triu(diagonal=1)
    mean = above.sum().item() / (len(pairs) * (len(pairs) - 1) / 2)
    assert mean == to_three_digits(PUBLISHED[model]["mean_jaccard"])


@each_model
def test_a_published_mask_has_the_published_layers(model: str):
    selection, facts = kept_mask(model), PUBLISHED[model]
    profile = selection.layer_profile().double()
    share = profile / profile.sum(dim=1, keepdim=True)
    quarter = selection.n_layers // 4
    union = selection.union().sum(dim=1)
    assert share[:, :quarter].sum(dim=1).tolist() == to_three_digits(facts["first_quarter"])
    assert share[:, -quarter:].sum(dim=1).tolist() == to_three_digits(facts["last_quarter"])
    quarters = [union[:quarter].sum() / union.sum(), union[-quarter:].sum() / union.sum()]
    assert [each.item() for each in quarters] == to_three_digits(facts["union_quarters"])
    assert (union.argmax().item(), union.max().item()) == facts["peak"]


@needs_masks
@each_model
def test_a_published_mask_equals_the_lists_beside_it(model: str):
    selection = published(model)
    lists = json.loads((MASKS / f"{model}.json").read_text(encoding="utf-8"))
    assert tuple(lists["languages"]) == selection.languages
    for language in selection.languages:
        ids = [layer.nonzero().flatten().tolist() for layer in selection[language]]
        assert ids == lists["neurons"][language]


@needs_masks
@each_model
def test_an_exported_mask_equals_the_published_file(model: str, tmp_path: Path):
    published(model).to_lape_pth(tmp_path / "mask.pth")
    theirs = torch.load(MASKS / f"{model}.neuron.pth", weights_only=True)
    ours = torch.load(tmp_path / "mask.pth", weights_only=True)
    assert [len(layers) for layers in ours] == [len(layers) for layers in theirs]
    for our_layers, their_layers in zip(ours, theirs, strict=True):
        for our_ids, their_ids in zip(our_layers, their_layers, strict=True):
            assert our_ids.dtype == their_ids.dtype == torch.int64
            assert our_ids.shape == their_ids.shape
            assert our_ids.tolist() == their_ids.tolist()


@needs_masks
@each_model
def test_an_exported_mask_has_the_published_bytes_of_tensor_data(model: str, tmp_path: Path):
    published(model).to_lape_pth(tmp_path / "mask.pth")

    def parts(path: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        return {name: part for name, part in inside.items() if not name.startswith(".")}

    theirs, ours = parts(MASKS / f"{model}.neuron.pth"), parts(tmp_path / "mask.pth")
    for name in theirs:
        if name.startswith("data"):
            assert ours[name] == theirs[name], name
    assert len([name for name in ours if name.startswith("data")]) == len(
        [name for name in theirs if name.startswith("data")]
    )


@needs_masks
def test_the_file_does_not_name_its_languages_and_the_caller_must(tmp_path: Path):
    with pytest.raises(ValueError, match="holds 6 languages, but 7 are named"):
        NeuronSelection.from_lape_pth(MASKS / "BLOOM-7B.neuron.pth", LANGUAGES, 16384)
    with pytest.raises(ValueError, match=r"but a layer has 11008: give the model's d_mlp"):
        NeuronSelection.from_lape_pth(MASKS / "BLOOM-7B.neuron.pth", LANGUAGES[:6], 11008)


CLAS_MASKS = MASKS.parent / "clas_masks"
OTHER_TOOLS = {
    "clas-llama-1": (
        "en ar bo da de es fr hi it ja ko mt nl no pl pt ru sv tr zh sk el kk sw ka uk fa th id vi "
        "cs ro",
        13_198,
    ),
    "subnetwork-llama-3.1-5": ("mt af is cy mk lv lt sl sk et ka ne", 37_547),
}


@pytest.mark.slow
@pytest.mark.skipif(not CLAS_MASKS.is_dir(), reason="no folder of shared data")
@pytest.mark.parametrize("name", OTHER_TOOLS)
def test_masks_of_other_tools_come_in_and_go_out_without_loss(name: str, tmp_path: Path):
    path, (labels, memberships) = CLAS_MASKS / f"{name}.pth", OTHER_TOOLS[name]
    selection = NeuronSelection.from_lape_pth(path, labels.split(), 14_336)
    assert (selection.n_layers, int(selection.mask.sum())) == (32, memberships)
    selection.to_json(tmp_path / "neurons.json")
    read_back = NeuronSelection.from_json(tmp_path / "neurons.json")
    assert read_back == selection
    read_back.to_lape_pth(tmp_path / "mask.pth")
    theirs, ours = (torch.load(x, weights_only=True) for x in (path, tmp_path / "mask.pth"))
    for our_layers, their_layers in zip(ours, theirs, strict=True):
        for our_ids, their_ids in zip(our_layers, their_layers, strict=True):
            assert our_ids.dtype == their_ids.dtype
            assert our_ids.tolist() == their_ids.tolist()


@pytest.fixture(scope="module")
def counted() -> FiringStats:
    stored = np.load(COUNTS)
    return FiringStats(
        fired=torch.from_numpy(stored["positive"].astype(np.int64))[None],
        tokens=torch.from_numpy(stored["tokens"])[None],
        languages=tuple(stored["languages"].tolist()),
    )


@needs_counts
def test_the_selection_from_real_counts_is_the_known_one(counted: FiringStats):
    selection = select_by_entropy(counted)
    assert selection.counts() == {
        "en": 32,
        "ru": 541,
        "es": 547,
        "fr": 708,
        "de": 901,
        "zh": 410,
        "ja": 588,
        "bn": 991,
        "th": 553,
        "sw": 1270,
    }
    histogram = selection.languages_per_neuron().flatten().bincount().tolist()
    assert histogram[1:] == [3285, 856, 290, 113, 42, 2]
    assert sum(histogram[1:]) == selection.union().sum() == 4588
    named = sorted(
        [selection.languages[row], layer, neuron] for row, layer, neuron in selection.triples()
    )
    digest = hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).hexdigest()
    assert digest == "48bcfd4ac61f08d2973938c7006720d077fcfbd59c35cff33c7ce373e9e979dd"


@needs_counts
def test_threshold_and_cut_on_real_counts_are_the_known_ones(counted: FiringStats):
    tau = busy_threshold(counted.rate)
    assert tau == pytest.approx(0.5549413735343, abs=5e-14)
    busy = (counted.rate > tau).any(dim=0)
    entropy = language_entropy(counted.rate)[busy].sort().values
    assert entropy[4587].item() == pytest.approx(2.056605230, abs=5e-10)
    assert entropy[4588].item() == pytest.approx(2.056623131, abs=5e-10)


SOME_COUNTS = Path(__file__).parent / "facts" / "real_counts.json"
"""Of some neurons on how many tokens they fire, in ten languages, and the languages that they are
known to belong to: those nearest to the cut and to the threshold, and others."""

TAU, CUT, NEXT = 0.5549413735343384, 2.056605230, 2.056623131
"""Of all 458,752 neurons of the model."""


def some_counts() -> tuple[tuple[str, ...], torch.Tensor, list[list[str]]]:
    """Languages, rates and the known languages of each neuron."""
    stored = json.loads(SOME_COUNTS.read_text(encoding="utf-8"))
    counts = torch.tensor([neuron["fired"] for neuron in stored["neurons"]], dtype=torch.int64)
    stats = FiringStats(
        fired=counts.T[None, :, None].contiguous(),
        tokens=torch.tensor([stored["tokens"]]),
        languages=tuple(stored["languages"]),
    )
    known = [neuron["languages"].split() for neuron in stored["neurons"]]
    return stats.languages, stats.rate, known


def test_real_counts_near_the_cut_and_the_threshold_give_the_known_languages():
    languages, rate, known = some_counts()
    entropy = language_entropy(rate)[0]
    chosen = (rate > TAU).any(dim=0)[0] & (entropy < (CUT + NEXT) / 2)
    for neuron, codes in enumerate(known):
        busy = [code for code, of in zip(languages, rate[:, 0, neuron], strict=True) if of > TAU]
        assert (busy if chosen[neuron] else []) == codes
    assert entropy[chosen].max().item() == pytest.approx(CUT, abs=5e-10)
    busy_others = (rate > TAU).any(dim=0)[0] & ~chosen
    assert entropy[busy_others].min().item() == pytest.approx(NEXT, abs=5e-10)
    assert rate[rate <= TAU].max().item() == pytest.approx(TAU, abs=5e-14)


@needs_counts
def test_what_is_kept_of_the_real_counts_is_in_the_file(counted: FiringStats):
    stored = json.loads(SOME_COUNTS.read_text(encoding="utf-8"))
    assert (tuple(stored["languages"]), stored["tokens"]) == (
        counted.languages,
        counted.tokens[0].tolist(),
    )
    selection = select_by_entropy(counted)
    for neuron in stored["neurons"]:
        layer, index = neuron["layer"], neuron["neuron"]
        assert counted.fired[0, :, layer, index].tolist() == neuron["fired"]
        belongs = selection.mask[:, layer, index].tolist()
        codes = [code for code, yes in zip(selection.languages, belongs, strict=True) if yes]
        assert codes == neuron["languages"].split()
