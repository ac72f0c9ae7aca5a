"""The claims that can be checked on the published masks, against what is known of those files."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments.read_published_masks import (
    MODELS,
    SIX,
    Config,
    chance_rank,
    exclusive,
    experiment,
    measures,
    rank,
    read_masks,
    shares,
)
from experiments.runner import stated
from interp.inference.claims import Claim, load_claims
from interp.inference.statements import judged
from interp.selections.neuron_selection import NeuronSelection
from tests import published_masks


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the study writes from what is kept of the published files."""
    masks, out = tmp_path_factory.mktemp("masks"), tmp_path_factory.mktemp("published")
    for model in published_masks.models():
        published_masks.kept_mask(model).to_lape_pth(masks / f"{model}.neuron.pth")
    experiment.run(Config(masks, out=out))
    return out


@pytest.mark.slow
def test_what_is_kept_of_the_masks_is_in_the_published_files(shared: Path):
    masks = shared / "data" / "lape_masks"
    if not masks.is_dir():
        pytest.skip("the published masks are not beside this checkout")
    for model, selection in read_masks(masks).items():
        kept = published_masks.kept_mask(model)
        assert published_masks.groups_of(kept) == published_masks.groups_of(selection)
        assert (kept.languages, kept.mask.shape) == (selection.languages, selection.mask.shape)
        pairs = [mask.overlap_frame().query("language != other") for mask in (kept, selection)]
        assert measures(kept, pairs[0]) == measures(selection, pairs[1])


@pytest.mark.slow
def test_sizes_and_pairs_are_those_of_the_published_files(told: Path):
    sizes = pd.read_csv(told / "sizes.csv").set_index(["model", "language"])
    assert sizes.loc[("LLaMA-2-7B", "ja"), "neurons"] == 582
    assert sizes.loc[("BLOOM-7B", "id"), "of_no_other"] == 2463
    assert sizes.loc[("Mistral-7B", "en"), "first_quarter"] == pytest.approx(0.184, abs=5e-4)
    assert sizes.loc[("Mistral-7B", "en"), "last_quarter"] == pytest.approx(0.289, abs=5e-4)
    pairs = pd.read_csv(told / "pairs.csv").set_index(["model", "language", "other"])
    assert pairs.loc[("LLaMA-2-7B", "zh", "ja"), "common"] == 217
    assert pairs.loc[("LLaMA-2-7B", "zh", "ja"), "jaccard"] == pytest.approx(0.229, abs=5e-4)
    assert (pairs["jaccard"] > pairs["chance_high"]).all()


@pytest.mark.slow
def test_the_claims_hold_where_they_are_known_to(told: Path):
    found = {claim.name: claim for claim in load_claims(told / "claims.json")}
    verdicts = {name: claim.verdict for name, claim in found.items()}
    assert {
        verdicts.pop(f"{model}-exclusive") for model in ("LLaMA-2-7B", "BLOOM-7B", "Mistral-7B")
    } == {"no more than its control"}
    fails = {name for name, verdict in verdicts.items() if verdict != "holds"}
    # The bottom layers hold many in LLaMA-2 alone, and BLOOM's Indonesian set is by itself.
    assert fails == {
        "BLOOM-7B-first_two_layers",
        "BLOOM-7B-neighbors",
        "Mistral-7B-first_two_layers",
    }
    assert found["LLaMA-2-7B-last_quarter"].value == pytest.approx(0.422, abs=5e-4)
    assert found["BLOOM-7B-exclusive"].value == pytest.approx(4135 / 4915)
    assert found["BLOOM-7B-last_quarter"].bar == pytest.approx(7 / 30)
    assert 0.9 < found["Mistral-7B-exclusive"].control < 1


def by_hand() -> NeuronSelection:
    """Eight layers of 100 neurons, 12 of them selected: two in the first layer, one in the second,
    three in the fifth, six in the last."""
    mask = torch.zeros(6, 8, 100, dtype=torch.bool)
    for row in range(6):
        mask[row, 7, row] = True  # one of its own
    mask[2:4, 0, 10] = True  # French and Spanish share one
    mask[0, 0, 11] = True
    mask[4, 1, 20] = True
    for row in (1, 3, 5):
        mask[row, 4, 30 + row] = True
    return NeuronSelection(mask, SIX)


def test_shares_of_layers_and_of_one_language_are_counted_by_hand():
    selection = by_hand()
    found = shares(selection)
    third = pytest.approx(1 / 3)
    assert found["first_two_layers"] == [0.5, 0, 0.5, third, 0.5, 0, 0.25]  # all of them last
    assert found["first_quarter"] == found["first_two_layers"]
    assert found["last_quarter"] == [0.5, 0.5, 0.5, third, 0.5, 0.5, 0.5]
    assert exclusive(selection) == pytest.approx(11 / 12)


def claimed(selection: NeuronSelection, pairs: pd.DataFrame) -> dict[str, Claim]:
    found = judged(stated("read_published_masks"), measures(selection, pairs), "made up")
    return {claim.name: claim for claim in found}


def test_the_place_of_a_pair_is_its_rank_by_jaccard():
    pairs = by_hand().overlap_frame()
    pairs = pairs[pairs["language"] != pairs["other"]]
    assert rank(pairs, ("fr", "es")) == 1
    assert rank(pairs, ("vi", "id"), ("fr", "es")) == 1
    assert rank(pairs.iloc[::-1], ("vi", "id")) > 1
    assert [chance_rank(15, 1), chance_rank(15, 2)] == [8, pytest.approx(16 / 3)]
    names = claimed(by_hand(), pairs)
    assert (names["fr-es"].value, names["fr-es"].control) == (1, 8)  # of 15 pairs
    assert names["neighbors"].control == 8  # Vietnamese and Indonesian; no Japanese is read
    assert names["first_two_layers"].verdict == "does not hold"  # no more than by chance
    assert (names["last_quarter"].value, names["last_quarter"].bar) == (0.5, 2 / 8)


def test_files_of_other_models_are_left_out_and_named(tmp_path: Path, capsys):
    with pytest.raises(FileNotFoundError, match="is missing: give the folder"):
        read_masks(tmp_path / "none")
    selection = NeuronSelection(torch.zeros(6, 2, 14336, dtype=torch.bool), SIX)
    selection.to_lape_pth(tmp_path / "other.neuron.pth")
    with pytest.raises(ValueError, match="holds no mask of LLaMA-2-7B"):
        read_masks(tmp_path)
    assert "other.neuron.pth is left out" in capsys.readouterr().out
    selection.to_lape_pth(tmp_path / "mistral-7b.neuron.pth")
    assert read_masks(tmp_path) == {"Mistral-7B": selection}
    assert MODELS["Mistral-7B"] == (SIX, 14336)
