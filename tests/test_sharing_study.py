"""What the study of sharing computes, and when its claims hold: on hand-made numbers."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from experiments import map_shared_neurons as study
from experiments import sharing_claims
from experiments.runner import stated
from experiments.study import Study
from interp.counting.bits import pack_bits, unpack_bits
from interp.counting.signs import FiringSigns
from interp.evaluations.category_ablation import CategoryAblation
from interp.evaluations.category_attribution import CATEGORIES, Enrichment
from interp.evaluations.category_scores import CategoryScores
from interp.evaluations.neuron_sets import EQUAL, RANDOM, Condition
from interp.inference.claims import Claim
from interp.inference.statements import Measurement, judged
from interp.scores.sharing_profile import SharingProfile, sharing_profile
from interp.text.tasks import Task, read_task

TINY = study.experiment.presets["tiny"][1]
N_PROMPTS = 12


def claimed(file: str, measured: Mapping[str, Measurement | None]) -> list[Claim]:
    """Of the statements of a file, those that these numbers are about."""
    some = [each for each in stated(file) if each.name in measured]
    return judged(some, measured, "something")


def switched(left: dict[Condition, float]) -> CategoryAblation:
    """The answer's probability that each set leaves, the same on all prompts but for some noise."""
    generator = torch.Generator().manual_seed(0)
    conditions = (Condition("nothing", ""), *left)
    level = torch.tensor([0.9, *left.values()], dtype=torch.float64)
    noise = 0.01 * torch.rand(N_PROMPTS, len(level), 2, generator=generator).double()
    probability = level[:, None] + noise
    neurons = torch.full((N_PROMPTS, len(level)), 10)
    neurons[:, 1] = 40  # the first of the sets
    ids = tuple(map(str, range(N_PROMPTS)))
    return CategoryAblation(
        correct=(probability > 0.5).double(),
        probability=probability,
        neurons=neurons,
        chance=torch.full((N_PROMPTS, 2), 0.5).double(),
        tokens="last",
        conditions=conditions,
        prompts=ids,
        groups=ids,
        task="made",
        languages=("de", "ja"),
    )


def off_claims(shared: float, partly: float, others: int = 10) -> list[Claim]:
    """With all-shared and partly shared neurons off this much is left, with others 0.8; `others`
    are the neurons of every set but the first."""
    left = {}
    for name in CATEGORIES[:0:-1]:  # all shared first
        value = {"all shared": shared, "partly shared": partly}.get(name, 0.8)
        left |= {Condition(name, name): value, Condition(name, EQUAL): value}
    off = switched({**left, Condition(RANDOM, EQUAL): 0.8})
    off.neurons[:, 2:] = others
    measured = sharing_claims.of_tokens({"last": off})
    for name in sharing_claims.OFF["all"]:
        assert measured.pop(name) is None
    claims = claimed("map_shared_neurons_by_task", measured)
    assert [claim.name for claim in claims] == ["all-shared-off", "all-shared-off-whole"]
    return claims


def test_switching_off_costs_more_only_where_it_costs_more_than_every_other_set():
    planted, decoy = off_claims(shared=0.2, partly=0.6), off_claims(shared=0.6, partly=0.2)
    assert [each.verdict for each in planted] == ["holds", "holds"]
    assert [each.verdict for each in decoy] == ["does not hold", "does not hold"]
    assert planted[0].value == pytest.approx(0.4, abs=0.02)  # beyond partly shared, not random
    assert planted[1].control_name.endswith("it is 4 times as many neurons as the larger of them")
    everywhere = off_claims(shared=0.2, partly=0.6, others=0)
    assert "unknown times" in everywhere[1].control_name


def test_whole_categories_are_compared_with_whole_ones_and_equal_sets_with_equal_ones():
    left = {Condition(name, name): 0.6 for name in CATEGORIES[1:]}
    left |= {Condition(name, EQUAL): 0.8 for name in (*CATEGORIES[1:], RANDOM)}
    left[Condition("all shared", "all shared")], left[Condition("all shared", EQUAL)] = 0.1, 0.7
    measured = sharing_claims.of_tokens({"all": switched(left)})
    equal, whole = (
        measured[f"{name}-everywhere"] for name in ("all-shared-off", "all-shared-off-whole")
    )
    assert equal is not None
    assert whole is not None
    values = [float(part.value.value) for part in (equal, whole)]
    assert values == pytest.approx([0.1, 0.5], abs=0.02)
    assert measured["all-shared-off"] is measured["all-shared-off-whole"] is None


def test_a_layer_where_all_shared_are_not_enriched_is_enough_to_refute():
    units = torch.full((N_PROMPTS, 3, 4), 2.0).double() + torch.rand(N_PROMPTS, 3, 4) / 10
    ids = tuple(map(str, range(N_PROMPTS)))

    def enriched(found: Enrichment) -> list[Claim]:
        measured = {"all-shared-enriched": sharing_claims.enriched(found)}
        return claimed("map_shared_neurons_by_task", measured)

    (holds,) = enriched(Enrichment(units=units, firing=units / 4, groups=ids))
    assert holds.verdict == "holds"
    assert "nonzero output it is 0.5" in holds.control_name
    nowhere = units / 4
    nowhere[:, 2, 3] = 0.125
    (least,) = enriched(Enrichment(units=units, firing=nowhere, groups=ids))
    assert "nonzero output it is 0.125" in least.control_name
    one = units.clone()
    one[:, 1, 3] = 0.5
    (refuted,) = enriched(Enrichment(units=one, firing=units, groups=ids))
    assert (refuted.verdict, refuted.value) == ("does not hold", 0.5)
    empty = torch.full_like(units, torch.nan)
    assert not enriched(Enrichment(units=empty, firing=empty, groups=ids))


def scored(share: float, part: float) -> CategoryScores:
    """Of prompts in two languages: the all-shared neurons' share of the contribution, and their
    part of ten neurons in each of two layers."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.rand(N_PROMPTS, 2, 1, 2, generator=generator).double()
    moved = torch.zeros(N_PROMPTS, 2, 4, 2).double()
    moved[:, :, 3:] = share + noise
    moved[:, :, 1:2] = 1 - share - noise
    neurons = torch.zeros(N_PROMPTS, 4, 2, dtype=torch.int64)
    neurons[:, 3], neurons[:, 0] = round(10 * part), 10 - round(10 * part)
    return CategoryScores(
        neurons=neurons,
        contribution_sum=moved,
        effective_sum=moved,
        effective_max=moved,
        effective_min=moved,
        languages=("de", "ja"),
        groups=tuple(map(str, range(N_PROMPTS))),
    )


@pytest.mark.parametrize(
    ("share", "part", "verdict"),
    [
        (0.8, 0.3, "holds"),
        (0.8, 0.9, "no more than its control"),  # so many neurons, and less than their part
        (0.4, 0.1, "does not hold"),
    ],
)
def test_all_shared_neurons_contribute_beyond_their_number(share, part, verdict):
    measured = {"all-shared-contribute": sharing_claims.contributed(scored(share, part))}
    (claim,) = claimed("map_shared_neurons_by_task", measured)
    assert claim.verdict == verdict
    assert (claim.value, claim.control) == pytest.approx((share + 0.01, part), abs=0.01)


def test_active_shares_are_compared_within_each_layer_between_the_two_that_differ_most():
    fires = torch.zeros(40, 3, 2, 8, dtype=torch.bool)  # prompt language layer neuron
    fires[:, :, 0, :4] = True
    fires[:, 1, 0, 4] = True  # in layer 0 one language has an eighth more
    fires[:, :2, 1, :2] = True  # in layer 1 the third has a quarter less
    signs = FiringSigns(
        bits=pack_bits(fires),
        prompts=tuple(map(str, range(40))),
        languages=("de", "en", "ja"),
        d_mlp=8,
    )
    profile = sharing_profile(signs, torch.Generator(), n_draws=1)
    measured = sharing_claims.active_apart(profile)
    assert measured is not None
    (claim,) = claimed("map_shared_neurons_by_task", {"active-alike": measured})
    assert claim.value == pytest.approx((1 / 8 + 2 / 8) / 2)
    assert claim.verdict == "does not hold"
    table = study.active_table(profile).set_index(["language", "layer"])["active"]
    assert table.loc[("en", 0)] == 5 / 8
    assert table.loc[("ja", 1)] == 0
    alike = replace(signs, bits=pack_bits(fires[:, :1].expand(-1, 3, -1, -1).contiguous()))
    same = sharing_claims.active_apart(sharing_profile(alike, torch.Generator(), n_draws=1))
    (claim,) = claimed("map_shared_neurons_by_task", {"active-alike": same})
    assert (claim.value, claim.verdict) == (0, "holds")


def related(*rows: tuple[float, float, float]) -> Claim:
    """The claim about correlations of overlap with distance, one with its interval per task."""
    columns = ["correlation", "low", "high"]
    table = pd.DataFrame(rows, columns=columns).assign(shuffled_correlation=0.1)
    measured = {"beyond-relatedness": sharing_claims.beyond_relatedness(table)}
    (claim,) = claimed("map_shared_neurons", measured)
    return claim


def test_sharing_is_beyond_relatedness_only_where_its_correlation_is_known_to_be_small():
    assert related((-0.9, -1.0, -0.8), (0.1, -0.1, 0.25)).verdict == "holds"
    assert related((-0.9, -1.0, -0.8), (0.1, -0.1, 0.25)).value == 0.1
    assert related((0.05, -0.9, 0.9), (0.1, -0.1, 0.25)).value == 0.1  # the surer of the two
    assert related((-0.9, -1.0, -0.8), (0.1, -0.6, 0.8)).verdict == "cannot tell"  # few languages
    assert related((-0.9, -1.0, -0.8), (-0.7, -0.9, -0.5)).verdict == "does not hold"
    unknown = related((0.0, math.nan, math.nan))
    assert unknown.verdict == "cannot tell"
    assert sharing_claims.beyond_relatedness(pd.DataFrame([])) is None


def test_the_correlation_with_distance_leaves_out_one_language_at_a_time(generator):
    overlap, distance = (torch.rand(5, 5, generator=generator).double() for _ in range(2))
    overlap, distance = overlap + overlap.T, distance + distance.T

    def pearson(kept: list[int]) -> float:
        pairs = [(a, b) for a in kept for b in kept if a < b]
        return float(
            np.corrcoef([[x[pair].item() for pair in pairs] for x in (overlap, distance)])[0, 1]
        )

    parts = [pearson([other for other in range(5) if other != row]) for row in range(5)]
    error = math.sqrt(4 / 5 * sum((part - sum(parts) / 5) ** 2 for part in parts))
    found = study.correlation_of(overlap, distance)
    assert found.value.item() == pytest.approx(pearson(list(range(5))))
    assert found.standard_error.item() == pytest.approx(error)
    assert found.degrees_of_freedom == 4


def test_two_tasks_are_compared_beside_what_firing_rates_alone_would_give():
    def claim(rate: float) -> Claim:
        noise = torch.rand(2, N_PROMPTS, generator=torch.Generator().manual_seed(0)).double() / 100
        shares = {
            "babel/statements": (0.5 + noise[0], rate + noise[0]),
            "babel/fact_completion": (0.3 + noise[1], 0.2 + noise[1]),
        }
        measured = {"questions-share-more": sharing_claims.statements_against_facts(shares)}
        return claimed("map_shared_neurons", measured)[0]

    found = claim(0.3)
    assert (found.value, found.control) == pytest.approx((0.2, 0.1), abs=0.01)
    assert found.difference == pytest.approx(0.1, abs=1e-9)
    assert found.verdict == "holds"
    assert claim(0.45).verdict == "no more than its control"
    assert sharing_claims.statements_against_facts({}) is None


def test_the_share_falls_from_the_first_layer_to_the_last_beyond_what_rates_give(generator):
    """In the first layer languages fire on the same prompts, in the last at the same rates."""
    together = torch.rand(40, 1, 1, 30, generator=generator) < 0.5
    first = together.expand(40, 3, 1, 30)
    last = torch.rand(40, 3, 1, 30, generator=generator) < 0.5
    ids = tuple(f"{n:02d}" for n in range(40))

    def claim(*layers: torch.Tensor) -> Claim:
        bits = pack_bits(torch.cat(layers, dim=2))
        signs = FiringSigns(bits=bits, prompts=ids, languages=("de", "en", "ja"), d_mlp=30)
        profile = sharing_profile(signs, torch.Generator(), n_draws=0)
        return claimed(
            "map_shared_neurons_by_task", {"all-shared-falls": sharing_claims.fall(profile)}
        )[0]

    falls = claim(first, last)
    assert falls.value == pytest.approx(0.5 - 0.125, abs=0.06)
    assert falls.control == pytest.approx(0.0, abs=0.03)
    assert falls.verdict == "holds"
    assert claim(last, first).verdict == "does not hold"
    busy = torch.rand(40, 3, 1, 30, generator=generator) < 0.9
    by_rate = claim(busy, last)
    assert by_rate.value > 0.5
    assert by_rate.verdict == "no more than its control"


def hand_made(n_languages: int, generator: torch.Generator) -> FiringSigns:
    """Twenty prompts; in the first layer languages fire alike, in the second independently."""
    alike = (torch.rand(20, 1, 1, 24, generator=generator) < 0.5).expand(20, n_languages, 1, 24)
    apart = torch.rand(20, n_languages, 1, 24, generator=generator) < 0.5
    languages = ("de", "en", "fr", "ja")[:n_languages]
    prompts = tuple(f"{n:02d}" for n in range(20))
    bits = pack_bits(torch.cat([alike, apart], dim=2))
    return FiringSigns(bits=bits, prompts=prompts, languages=languages, d_mlp=24)


def test_the_share_by_number_goes_from_two_languages_to_all(generator):
    signs = hand_made(4, generator)
    rows = study.by_number(signs, "made", TINY)
    assert [row["languages"] for row in rows] == [2, 3, 4]
    for row in rows:
        some = unpack_bits(signs.bits, 24)[:, : row["languages"]].all(dim=1)
        assert row["all_shared"] == pytest.approx(some.double().mean().item())


def test_what_tasks_are_compared_by_is_the_share_of_every_prompt(generator):
    signs = hand_made(3, generator)
    share, chance = study.all_shared(sharing_profile(signs, torch.Generator(), n_draws=0))
    everywhere = unpack_bits(signs.bits, 24).all(dim=1)
    assert torch.allclose(share, everywhere.double().mean(dim=(1, 2)))
    rates = unpack_bits(signs.bits, 24).double().mean(dim=0)
    assert chance.mean().item() == pytest.approx(rates.prod(dim=0).mean().item(), abs=1e-5)


def test_the_share_at_each_threshold_stands_beside_the_threshold(generator, monkeypatch):
    def signs_by(model: object, rows: object, ways: list[tuple[str, float]]) -> list[FiringSigns]:
        made = hand_made(3, generator)
        bits = [pack_bits(torch.full((20, 3, 2, 24), bool(threshold))) for _, threshold in ways]
        return [replace(made, bits=some) for some in bits]

    monkeypatch.setattr(study, "signs_by", signs_by)
    rows = study.by_threshold(None, None, "made", TINY)
    assert [(row["fires_by"], row["threshold"]) for row in rows] == [
        *(("gate", 0.0), ("gate", 0.2), ("output", 0.0), ("output", 0.2)),
    ]
    assert [row["all_shared"] for row in rows] == [0.0, 1.0, 0.0, 1.0]


def test_effects_are_measured_on_some_items_that_no_language_was_kept_from(monkeypatch):
    items = read_task("babel/word_translation", "de").items[:8]
    held_out = tuple(item._replace(held_out=n == 1) for n, item in enumerate(items))
    told = tuple(item._replace(held_out=False) for item in items)
    tasks = (Task("made", "de", told), Task("made", "ja", held_out))
    monkeypatch.setattr(study, "drop_ambiguous", lambda model, tasks, bos: tasks)
    some = study.ablation_tasks(None, tasks, replace(TINY, n_prompts=3))
    for task in some:
        assert [item.id for item in task.items] == [items[n].id for n in (0, 2, 3)]


def misclassified(signs: FiringSigns, profile: SharingProfile) -> int:
    """Neurons in no category or in two, or in another category once the languages are reversed."""
    languages = signs.languages[::-1]
    other = sharing_profile(signs, torch.Generator(), languages=languages, n_draws=0)
    not_once = (profile.count.sum(dim=-1) - profile.d_mlp).abs().sum()
    return int(not_once + (other.count - profile.count).abs().sum())


def test_categories_hold_every_neuron_once_in_any_order_of_the_languages():
    fires = torch.rand(5, 3, 2, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    signs = FiringSigns(
        bits=pack_bits(fires), prompts=tuple("abcde"), languages=("de", "en", "ja"), d_mlp=20
    )
    profile = sharing_profile(signs, torch.Generator(), n_draws=0)
    assert misclassified(signs, profile) == 0
    wrong = profile.count.clone()
    wrong[2, 1, 3] += 1
    assert misclassified(signs, replace(profile, count=wrong)) == 2
    wrong[2, 1, 0] -= 1  # now they add up, and two are in another category
    assert misclassified(signs, replace(profile, count=wrong)) == 2


@pytest.mark.slow
def test_one_pass_with_several_thresholds_equals_a_pass_for_each():
    model = interp.load("babel", dtype=torch.float32)
    tasks = [read_task("babel/word_translation", code) for code in ("de", "ja")]
    few = [task.where(lambda item: item in task.items[:4]) for task in tasks]  # noqa: B023
    rows = study.rows_of(model, few, "document")
    for fires_by, threshold in (("gate", 0.2), ("output", 0.0)):
        (_, found) = study.signs_by(model, rows, [("gate", 0.0), (fires_by, threshold)])
        keep = interp.Keep(signs=fires_by, signs_above=threshold)
        expected = interp.collect(model, rows, keep=keep, progress=False).signs
        assert (found.fires_by, found.threshold) == (fires_by, threshold)
        order = [found.prompts.index(id) for id in expected.prompts]
        assert torch.equal(found.bits[order], expected.bits)


def test_distances_come_from_the_list_or_from_a_file_and_too_few_give_no_claim(tmp_path: Path):
    config = replace(TINY, study=Study(languages=("de", "fr", "ja")))
    listed = study.distances_of(config)
    assert listed is not None
    assert listed[0].tolist() == [0, 1, 3]
    path = tmp_path / "distances.csv"
    path.write_text("lang1,lang2,syntactic,genetic\nfr,de,0.5,1\nde,ja,0.7,1\nfr,ja,0.6,1\n")
    read = study.distances_of(replace(config, distances=path))
    assert read is not None
    assert read[0].tolist() == [0, 0.5, 0.7]
    assert study.distances_of(replace(config, distances=path, kind_of_distance="genetic")) is None
    assert study.distances_of(TINY) is None  # two languages are one pair


def test_a_folder_with_other_settings_is_not_gone_on_with(tmp_path: Path):
    model = interp.load("babel", dtype=torch.float32)
    study.begin_task(model, "made", tmp_path, TINY)
    study.begin_task(model, "made", tmp_path, TINY)
    with pytest.raises(ValueError, match="was started with another fires_by"):
        study.begin_task(model, "made", tmp_path, replace(TINY, fires_by="output"))
    with pytest.raises(ValueError, match="was started with another steps"):
        study.begin_task(model, "made", tmp_path, replace(TINY, steps=5))
