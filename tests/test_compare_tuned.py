"""A model and what was tuned from it: what counts as more sharing, and as the same neurons."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import compare_tuned as study
from experiments.runner import stated
from interp.counting.bits import pack_bits
from interp.inference.claims import Claim, load_claims
from interp.inference.statements import Measurement, judged
from interp.scores.sharing_profile import SharingProfile, sharing_profile

N_PROMPTS, WIDTH = 40, 16


def profile(together: int, always: int) -> SharingProfile:
    """Of two languages: some neurons fire on half of the prompts, the same half in both, some on
    every prompt, and the others on random halves."""
    generator = torch.Generator().manual_seed(0)
    fires = torch.rand(N_PROMPTS, 2, 1, WIDTH, generator=generator) < 0.5
    fires[..., :together] = fires[:, :1, :, :together]
    fires[..., together : together + always] = True
    signs = interp.FiringSigns(
        bits=pack_bits(fires),
        prompts=tuple(map(str, range(N_PROMPTS))),
        languages=("de", "ja"),
        d_mlp=WIDTH,
    )
    return sharing_profile(signs, torch.Generator(), n_draws=1)


def claimed(
    name: str, measurement: Measurement | None, file: str = "compare_tuned_by_task"
) -> Claim:
    statements = [each for each in stated(file) if each.name == name]
    (claim,) = judged(statements, {name: measurement}, "two models")
    return claim


def test_neurons_that_fire_on_the_same_prompts_are_more_sharing_and_busier_ones_are_not():
    base = profile(0, 0)
    together = claimed("tuned-shares-more", study.shares_more(base, profile(12, 0)))
    busier = claimed("tuned-shares-more", study.shares_more(base, profile(0, 12)))
    assert together.verdict == "holds"
    assert together.control == pytest.approx(0, abs=0.02)
    assert busier.verdict == "no more than its control"
    assert busier.value > together.value > 0.1
    fewer = claimed("tuned-shares-more", study.shares_more(profile(12, 0), base))
    assert (fewer.verdict, fewer.value) == ("does not hold", -together.value)


def answered(right: torch.Tensor, language: str) -> interp.evaluations.Choices:
    """Of items with two options, those that are answered right."""
    n = len(right)
    likely = torch.stack([right.double(), 1 - right.double()], dim=1)
    return interp.evaluations.Choices(
        log_likelihood=likely,
        tokens=torch.ones(n, 2, dtype=torch.int64),
        bytes=torch.ones(n, 2, dtype=torch.int64),
        answer=torch.zeros(n, dtype=torch.int64),
        normalize="none",
        ids=tuple(map(str, range(n))),
        groups=tuple(map(str, range(n))),
        task="made",
        language=language,
        intervention="nothing",
    )


def test_accuracy_is_compared_item_by_item_over_languages():
    before = [answered(torch.arange(20) % 2 == 0, code) for code in ("de", "ja")]
    after = [answered(torch.arange(20) >= 0, "de"), before[1]]
    claim = claimed("tuned-more-accurate", study.more_accurate(before, after))
    assert (claim.value, claim.verdict) == (0.25, "holds")  # half of the items, one language of two
    table = study.answer_table(before, after).set_index("language")
    assert table[["before", "after", "chance"]].values.tolist() == [[0.5, 1, 0.5], [0.5, 0.5, 0.5]]
    assert claimed("tuned-more-accurate", study.more_accurate(after, before)).value == -0.25


def test_neurons_that_stay_are_counted_among_those_of_either_model():
    masks = torch.zeros(2, 3, 2, 8, dtype=torch.bool)  # model language layer neuron
    masks[:, 0, 0, :3] = True
    masks[1, 0, 1, 0] = True  # three of four stay
    masks[0, 1, 0, 4], masks[1, 1, 0, 5] = True, True  # none stays
    base, tuned = (interp.NeuronSelection(mask, ("de", "fr", "ja")) for mask in masks)
    assert study.kept(base, tuned).tolist() == [0.75, 0, 0]


def test_the_planted_neurons_are_those_that_fire_least():
    fired = torch.full((2, 2, 2, 10), 5)
    fired[:, :, 1, 3] = 0
    fired[:, 0, 0, 4] = 0  # a decoy: silent in one language, busy in the other
    fired[:, 1, 0, 4] = 10
    stats = interp.FiringStats(fired, torch.full((2, 2), 20), ("de", "ja"))
    assert study.least_active(stats, 0.05).nonzero().tolist() == [[1, 3]]


@pytest.mark.campaign
def test_planted_neurons_are_shared_after_and_not_before(tmp_path: Path):
    _, tiny = study.experiment.presets["tiny"]
    small = replace(tiny, study=replace(tiny.study, out=tmp_path / "study"), out=tmp_path)
    study.experiment.run(small)
    sharing = pd.read_csv(tmp_path / "babel-word_translation" / "sharing.csv")
    shared = sharing[sharing["category"] == "all shared"].mean(numeric_only=True)
    assert shared["share_after"] - shared["share_before"] > study.NEGATED / 2
    neurons = pd.read_csv(tmp_path / "neurons.csv")
    assert neurons["language"].tolist() == ["de", "fr", "ja"]
    claims = {claim.name: claim for claim in load_claims(tmp_path / "claims.json")}
    more = claims["tuned-shares-more-word translation"]
    # Neurons that always fire are shared by their rates alone, and nothing else has changed.
    assert more.value > study.NEGATED / 2
    assert more.value == pytest.approx(more.control, abs=0.01)
    assert more.verdict == "no more than its control"
    same = claims["tuned-same-neurons"]
    assert same.value > 3 * same.control  # not all: neurons that always fire move LAPE's threshold
    assert abs(claims["tuned-more-accurate-word translation"].value) < 0.2
    assert more.on == "babel and planted, word translation"
    assert set(claims) == {
        "tuned-shares-more-word translation",
        "tuned-more-accurate-word translation",
        "tuned-same-neurons",
        "tuned-base-neurons-matter",
    }
    rates = pd.read_csv(tmp_path / "rates.csv")
    assert (rates["correlation"] < 1).all()
    assert (rates["mean_change"] > study.NEGATED / 2).all()
