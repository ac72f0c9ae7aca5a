"""What the study of sharing computes, and when its claims hold: on hand-made numbers."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import map_shared_neurons as study
from experiments import sharing_claims
from experiments.runner import stated
from experiments.study import Study
from interp.counting.bits import pack_bits
from interp.counting.signs import FiringSigns
from interp.evaluations.category_ablation import CategoryAblation
from interp.evaluations.category_attribution import CATEGORIES, Enrichment
from interp.evaluations.neuron_sets import EQUAL, RANDOM, Condition
from interp.inference.claims import Claim, Measurement, judged
from interp.scores.sharing_profile import sharing_profile
from interp.text.tasks import read_task

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
    return claimed("map_shared_neurons_by_task", sharing_claims.of_off(off))


def test_switching_off_costs_more_only_where_it_costs_more_than_every_other_set():
    planted, decoy = off_claims(shared=0.2, partly=0.6), off_claims(shared=0.6, partly=0.2)
    assert [each.verdict for each in planted] == ["holds", "holds"]
    assert [each.verdict for each in decoy] == ["does not hold", "does not hold"]
    assert planted[0].value == pytest.approx(0.4, abs=0.02)  # beyond partly shared, not random
    assert planted[1].control == 4.0  # times as many neurons
    everywhere = off_claims(shared=0.2, partly=0.6, others=0)
    assert math.isnan(everywhere[1].control)


def test_a_layer_where_all_shared_are_not_enriched_is_enough_to_refute():
    units = torch.full((N_PROMPTS, 3, 4), 2.0).double() + torch.rand(N_PROMPTS, 3, 4) / 10
    ids = tuple(map(str, range(N_PROMPTS)))

    def enriched(found: Enrichment) -> list[Claim]:
        measured = {"all-shared-enriched": sharing_claims.enriched(found)}
        return claimed("map_shared_neurons_by_task", measured)

    (holds,) = enriched(Enrichment(units=units, firing=units / 4, groups=ids))
    assert holds.verdict == "holds"
    assert holds.control == pytest.approx(0.5, abs=0.05)
    one = units.clone()
    one[:, 1, 3] = 0.5
    (refuted,) = enriched(Enrichment(units=one, firing=units, groups=ids))
    assert (refuted.verdict, refuted.value) == ("does not hold", 0.5)
    empty = torch.full_like(units, torch.nan)
    assert not enriched(Enrichment(units=empty, firing=empty, groups=ids))


def over_tasks(
    shares: dict[str, torch.Tensor] | None = None, **changed: pd.DataFrame
) -> dict[str, Claim]:
    """Claims over two tasks that agree with the paper in everything, but for what is changed."""
    tables = {
        "numbers": pd.DataFrame(
            [
                (task, n, share / n, share / n / 2)
                for task, share in (("a", 1.0), ("b", 0.8))
                for n in (2, 3)
            ],
            columns=["task", "languages", "all_shared", "independent"],
        ),
        "thresholds": pd.DataFrame(
            [
                (task, fires_by, threshold, share - threshold)
                for task, share in (("a", 0.9), ("b", 0.8))
                for fires_by in ("gate", "output")
                for threshold in (0.0, 0.1)
            ],
            columns=["task", "fires_by", "threshold", "all_shared"],
        ),
        "related": pd.DataFrame(
            [("a", -0.8, 0.01, -0.1, 0.4), ("b", -0.7, 0.03, -0.2, 0.3)],
            columns=["task", "correlation", "p", "shuffled_correlation", "shuffled_p"],
        ),
    }
    tables |= changed
    measured = sharing_claims.over_tasks(*tables.values(), shares or {}, "gate")
    return {each.name: each for each in claimed("map_shared_neurons", measured)}


def test_claims_over_tasks_hold_where_all_tasks_agree():
    claims = over_tasks()
    follows = claims.pop("beyond-relatedness")
    assert {each.verdict for each in claims.values()} == {"holds"}
    assert claims["falls-with-languages"].value == pytest.approx(0.8 / 2 - 0.8 / 3)
    assert (follows.value, follows.control) == (0.03, 0.3)
    assert follows.verdict == "does not hold"  # here it follows relatedness in every task
    assert "beyond-relatedness" not in over_tasks(related=pd.DataFrame([]))


def test_sharing_that_grows_with_distance_is_beyond_relatedness():
    related = pd.DataFrame(
        [("a", -0.8, 0.01, 0.0, 0.5), ("b", 0.9, 0.001, 0.0, 0.5)],
        columns=["task", "correlation", "p", "shuffled_correlation", "shuffled_p"],
    )
    claim = over_tasks(related=related)["beyond-relatedness"]
    assert (claim.value, claim.verdict) == (1.0, "holds")


def test_two_tasks_are_compared_beside_what_firing_rates_alone_would_give():
    shares = {
        f"babel/{name}": torch.full((N_PROMPTS,), share).double() + torch.rand(N_PROMPTS) / 100
        for name, share in (("statements", 0.5), ("fact_completion", 0.3))
    }
    numbers = pd.DataFrame(
        [
            (name, n, 1 / n, rate / n)
            for name, rate in zip(shares, (0.9, 0.6), strict=True)
            for n in (2, 3)
        ],
        columns=["task", "languages", "all_shared", "independent"],
    )
    claim = over_tasks(shares, numbers=numbers)["questions-share-more"]
    assert claim.value == pytest.approx(0.2, abs=0.01)
    assert claim.verdict == "holds"
    assert claim.control == pytest.approx(0.3 - 0.2)  # of three languages, not of two


def test_the_order_of_tasks_is_that_of_the_source_that_was_chosen():
    rows = [("a", "gate", 0.0, 0.9), ("b", "gate", 0.0, 0.8), ("a", "gate", 0.1, 0.5)]
    rows += [("b", "gate", 0.1, 0.6), ("a", "output", 0.0, 0.1), ("b", "output", 0.0, 0.2)]
    table = pd.DataFrame(rows, columns=["task", "fires_by", "threshold", "all_shared"])
    claims = over_tasks(thresholds=table)
    assert (claims["order-of-tasks"].value, claims["order-of-tasks"].verdict) == (
        0.5,
        "does not hold",
    )


def test_neurons_that_are_counted_wrongly_are_misclassified():
    fires = torch.rand(5, 3, 2, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    signs = FiringSigns(
        bits=pack_bits(fires), prompts=tuple("abcde"), languages=("de", "en", "ja"), d_mlp=20
    )
    profile = sharing_profile(signs, torch.Generator(), n_draws=0)
    assert sharing_claims.misclassified(signs, profile) == 0
    wrong = profile.count.clone()
    wrong[2, 1, 3] += 1
    assert sharing_claims.misclassified(signs, replace(profile, count=wrong)) == 2
    wrong[2, 1, 0] -= 1  # now they add up, and two are in another category
    assert sharing_claims.misclassified(signs, replace(profile, count=wrong)) == 2


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
