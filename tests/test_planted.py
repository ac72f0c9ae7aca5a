"""Planted language neurons: the model is what its design says, and selectors are judged fairly."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import pandas as pd
import pytest
import torch
from einops import rearrange

import interp
from experiments import planted as subject
from experiments import recover_planted as judges
from experiments.planted import DECOYS, KINDS, Design, Planted, Truth
from experiments.recover_planted import ALL, NONE, TINY
from experiments.runner import stated
from interp.inference.intervals import clustered_share, wilson
from interp.inference.statements import judged
from interp.scores.choosers import Measured, least
from interp.scores.lape import language_entropy
from interp.scores.methods import COMPARED, METHODS, Settings

pytestmark = pytest.mark.slow  # the planted models are counted once for all of them

EFFECTS = (0.0, 2.0, 6.0)
N_NEURONS = TINY.n_layers * TINY.d_mlp
CHANCE = TINY.planted / N_NEURONS


@pytest.fixture(scope="module")
def _built_once() -> Iterator[None]:
    """Of a design, effect, seed and decoys one model is built, measured, and shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "planted_and_measured", cache(judges.planted_and_measured))
        yield


@pytest.fixture(scope="module")
def compared(_built_once) -> pd.DataFrame:
    make = partial(judges.planted_and_measured, TINY)
    return judges.compare(make, TINY.planted, EFFECTS, range(2), COMPARED, progress=False)


@pytest.fixture(scope="module")
def by_decoys(compared) -> pd.DataFrame:
    return judges.summarize(compared).set_index(["decoys", "effect", "selector"])


@pytest.fixture(scope="module")
def summary(by_decoys) -> pd.DataFrame:
    """Beside all decoys."""
    return by_decoys.loc[ALL]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[float, Planted]:
    """One seed, three effects."""
    return {
        effect: subject.plant(
            TINY, effect, torch.Generator().manual_seed(0), tmp_path_factory.mktemp("model")
        )
        for effect in EFFECTS
    }


@pytest.fixture(scope="module")
def measured(models) -> dict[float, Measured]:
    return {
        effect: judges.measure(TINY, models[effect], torch.Generator().manual_seed(1))
        for effect in (0.0, 6.0)
    }


# ---------------------------------------------------------------- the model is what was designed


def test_every_neuron_of_the_checkpoint_fires_where_the_design_says(models):
    planted = models[2.0]
    corpora = subject.read_text(TINY, planted, 20, torch.Generator().manual_seed(2))
    stats = interp.collect(planted.model, corpora, progress=False).firing
    noise, bos = (TINY.features[name] for name in ("noise", "bos"))
    expected = torch.zeros(len(TINY.languages), TINY.n_layers, TINY.d_mlp, dtype=torch.int64)
    for row, code in enumerate(TINY.languages):
        rows = corpora.rows[code]
        for ids, length in zip(rows.ids, rows.length.tolist(), strict=True):
            seen = planted.vectors[ids[:length].long()]
            for place in range(1, length):  # the beginning of text does not count
                state, before = seen[place].clone(), seen[: place + 1].mean(dim=0)
                state[noise] += TINY.context * before[noise]
                state[TINY.features["position"]] = before[bos]
                expected[row] += planted.gates @ state > 0
    fired = stats.fired.sum(dim=0)
    assert expected.sum() > 10_000
    # Rotated, saved in float32 and run by another program: a gate may be a hair from zero.
    assert (fired - expected).abs().max() <= 1
    assert (fired != expected).sum() < 10


def test_planted_neurons_fire_with_the_stated_probabilities(models):
    for effect, planted in models.items():
        own, other = planted.truth.firing_probability()
        fires = torch.einsum("lnf,wf->lnw", planted.gates, planted.vectors) > 0
        speaks = planted.words.speaks
        for row, mask in enumerate(planted.truth.selection.mask):
            foreign = speaks.any(dim=1) & ~speaks[:, row]
            assert fires[mask][:, speaks[:, row]].double().mean() == pytest.approx(own, abs=0.08)
            assert fires[mask][:, foreign].double().mean() == pytest.approx(other, abs=0.08)
        assert (own == other) == (effect == 0)
    own, other = models[6.0].truth.firing_probability()
    assert own > 0.95
    assert other < 0.01


def test_the_effect_changes_the_gates_of_planted_neurons_and_nothing_else(models):
    none, large = models[0.0], models[6.0]
    assert none.truth.selection == large.truth.selection
    changed = (none.gates != large.gates).any(dim=-1)
    assert torch.equal(changed, large.truth.is_kind("language"))
    for layer in range(TINY.n_layers):
        assert torch.equal(none.model.w_out(layer), large.model.w_out(layer))
    assert torch.equal(none.vectors, large.vectors)


def test_the_same_seed_gives_the_same_model_and_text_and_another_seed_another(models, tmp_path):
    def again(seed: int) -> Planted:
        generator = torch.Generator().manual_seed(seed)
        return subject.plant(TINY, 2.0, generator, tmp_path / str(seed))

    same, other = again(0), again(1)
    key = "weights"
    assert same.model.fingerprint[key] == models[2.0].model.fingerprint[key]
    assert other.model.fingerprint[key] != same.model.fingerprint[key]
    texts = [
        subject.write_text(TINY, same.words, 5, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_random_numbers_of_the_program_are_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    subject.plant(TINY, 0.0, torch.Generator().manual_seed(0), tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_there_are_as_many_neurons_of_each_kind_as_designed(models):
    kind = models[0.0].truth.kind
    n, decoys = len(TINY.languages), TINY.decoys
    found = torch.bincount(kind.flatten(), minlength=len(KINDS)).tolist()
    counts = {name: n for name, n in zip(KINDS, found, strict=True) if n}
    assert counts.pop("background") > N_NEURONS / 2
    assert counts == {
        "language": n * TINY.planted,
        "busy": decoys,
        "rare": n * decoys,
        "script": n // 2 * decoys,
        "domain": n * decoys,
        "position": decoys,
    }


def test_decoys_are_what_they_are_called(models, measured):
    truth, rate = models[0.0].truth, measured[0.0]["rate"]
    assert rate[:, truth.is_kind("busy")].min() > 0.9
    rare = rate[:, truth.is_kind("rare")]
    assert rare.max() < 0.03
    assert ((rare > 0).sum(dim=0) <= 1).all()
    script = rate[:, truth.is_kind("script")].sort(dim=0).values
    assert (script[-2:].mean(dim=1) > 0.5).all()
    assert (script[:-2].mean(dim=1) < 0.1).all()
    domain = rate[:, truth.is_kind("domain")].sort(dim=0).values.mean(dim=1)
    assert domain[-1] > 1.3 * domain[-2]
    position = rate[:, truth.is_kind("position")].mean(dim=1)
    assert position[-1] > 1.3 * position[:-1].max()  # the language of short sentences


def test_words_are_tokens_and_belong_where_the_text_has_them(models):
    planted = models[0.0]
    words, model = planted.words, planted.model
    text = subject.write_text(TINY, words, 200, torch.Generator().manual_seed(0))
    lengths = []
    for row, code in enumerate(TINY.languages):
        ids = [torch.tensor(each) for each in model.encode_batch(text[code])]
        assert [[words.text[id] for id in each] for each in ids] == [
            sentence.split(" ") for sentence in text[code]
        ]
        every = torch.cat(ids)
        others = words.speaks.any(dim=1) & ~words.speaks[:, row]
        assert not others[every].any()
        assert words.speaks[every, row].double().mean() == pytest.approx(0.85, abs=0.05)
        own_domain = words.domain[every].double().mean(dim=0)
        assert own_domain.argmax() == row
        lengths.append(len(every) / len(ids))
    assert lengths[-1] < 0.7 * min(lengths[:-1])
    assert words.frequency.sum(dim=-1) == pytest.approx(1)


# ---------------------------------------------------------------- recovery


def test_what_was_found_and_mistaken_is_counted_by_language_and_kind():
    def selection(*triples: tuple[int, int, int]) -> interp.NeuronSelection:
        return interp.NeuronSelection.from_triples(triples, ("en", "de"), 2, 4)

    kind = torch.tensor([[1, 1, 2, 0], [1, 4, 0, 0]])
    there = selection((0, 0, 0), (0, 0, 1), (1, 1, 0))
    truth = Truth(there, kind, torch.zeros(2, 4, dtype=torch.float64), 1.0)
    chosen = selection((0, 0, 0), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 3))
    frame = judges.recovery(chosen, truth).set_index("language")
    en = frame.loc["en"]
    assert (en["planted"], en["chosen"], en["found"]) == (2, 5, 1)
    assert (en["precision"], en["recall"]) == (1 / 5, 1 / 2)
    assert en["recall_low"] < 1 / 2 < en["recall_high"]
    mistakes = {"background": 1, "other language": 1, "busy": 1, "script": 1}
    assert {name: en[name] for name in mistakes} == mistakes
    assert en[["rare", "domain", "position"]].sum() == 0
    de = frame.loc["de"]
    assert (de["planted"], de["chosen"], de["recall"]) == (1, 0, 0)
    assert math.isnan(de["precision"])
    swapped = judges.recovery(chosen.languages_only(("de", "en")), truth)
    pd.testing.assert_frame_equal(swapped.set_index("language"), frame)


def test_the_interval_is_wilsons_and_wider_where_languages_disagree():
    share, low, high = clustered_share([0], [10])
    assert (share, low) == (0, 0)
    assert high == pytest.approx(1.959964**2 / (10 + 1.959964**2))
    for size in range(1, 200):
        assert clustered_share([0], [size])[1] == 0
        assert clustered_share([size], [size])[2] == 1
    share, low, high = clustered_share([4, 4, 4], [8, 8, 8])
    assert (share, (low + high) / 2) == (0.5, pytest.approx(0.5))
    assert (low, high) == pytest.approx(clustered_share([12], [24])[1:])
    _, lower, higher = clustered_share([0, 8, 4], [8, 8, 8])
    assert lower < low - 0.05
    assert higher > high + 0.05
    # Clusters vary by 1/12 = (16 + 16) / 24² · 3/2, eight times 0.25 / 24: as if of three trials.
    assert (lower, higher) == pytest.approx(wilson(0.5, 3))
    assert all(math.isnan(each) for each in clustered_share([], []))


def test_the_interval_covers_the_truth_as_often_as_it_says_though_clusters_differ(generator):
    covered, draws = 0, 400
    for _ in range(draws):
        level = 0.1 + 0.4 * torch.rand(12, generator=generator)  # 0.3 on average
        hits = (torch.rand(12, 10, generator=generator) < level[:, None]).sum(dim=1).tolist()
        _, low, high = clustered_share(hits, [10] * 12)
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / draws <= 0.985


# ---------------------------------------------------------------- selectors, judged


def test_random_neurons_are_found_at_chance(summary):
    for effect in EFFECTS:
        row = summary.loc[(effect, "random")]
        assert row["recall_low"] <= CHANCE <= row["recall_high"]


def test_without_an_effect_every_selector_is_at_chance(compared):
    """All at once, so that the intervals are wider than that of one.

    Left out are effects on the loss, which show what a neuron writes: a planted one writes its
    language wherever it fires.
    """
    none = compared[(compared["effect"] == 0) & (compared["decoys"] == ALL)]
    for selector, part in none.groupby("selector"):
        if selector == METHODS["loss-effects"].title:
            continue
        found, there = part["found"].tolist(), part["planted"].tolist()
        _, low, high = clustered_share(found, there, 1 - 0.05 / len(COMPARED))
        assert low <= CHANCE <= high, selector


def test_without_an_effect_planted_neurons_rank_as_the_background_does(models, measured):
    def mean_rank(effect: float, score: torch.Tensor) -> float:
        """Of planted neurons among the background, in their own language: a half is chance."""
        truth, ranks = models[effect].truth, []
        among = truth.is_kind("background")
        for row, mask in enumerate(truth.selection.mask):
            background = score[row][among].sort().values
            ranks.append(torch.searchsorted(background, score[row][mask]) / len(background))
        return torch.cat(ranks).mean().item()

    error = math.sqrt(1 / 12 / (TINY.planted * len(TINY.languages)))
    for effect, seen in measured.items():
        rate = seen["rate"]
        scores = {
            "gate": seen["gate_precision"],
            "entropy": -language_entropy(rate).expand_as(rate),
            "rate": rate,
            "lead": rate - rate.mean(dim=0),
        }
        for name, score in scores.items():
            rank = mean_rank(effect, score)
            if effect == 0:
                assert abs(rank - 0.5) < 3.5 * error, name
            else:
                assert rank > 0.9, name


@pytest.mark.parametrize(
    "selector", ["entropy (LAPE)", "LAPE as published", "precision of gate", "lead in rate"]
)
def test_a_large_effect_is_recovered(summary, selector):
    assert summary.loc[(6.0, selector), "recall"] >= 0.95


def test_precision_finds_what_entropy_does_not_yet_see(summary):
    """Both see the same text; a mean over a sentence's gates tells more than their signs do."""
    precision, entropy = (
        summary.loc[(2.0, name)] for name in ("precision of gate", "entropy (LAPE)")
    )
    assert precision["recall_low"] > entropy["recall_high"]


# ---------------------------------------------------------------- selectors, fooled


def test_busy_neurons_fool_the_rate_alone_whatever_the_effect(summary):
    for effect in EFFECTS:
        assert summary.loc[(effect, "rate (LAP)"), "busy"] > 0.9
        assert summary.loc[(effect, "entropy (LAPE)"), "busy"] == 0


def test_rare_neurons_fool_entropy_without_the_busy_bar(summary):
    for effect in EFFECTS:
        assert summary.loc[(effect, "entropy alone"), "rare"] > 0.5
        assert summary.loc[(effect, "entropy (LAPE)"), "rare"] == 0


def test_script_neurons_fool_entropy_and_precision_where_the_effect_is_small(summary):
    assert summary.loc[(2.0, "entropy (LAPE)"), "script"] > 0.5
    assert summary.loc[(0.0, "precision of gate"), "script"] > 0.3
    assert summary.loc[(6.0, "precision of gate"), "script"] == 0


def test_domain_neurons_fool_the_lead_in_rate_where_there_is_no_effect(summary):
    row = summary.loc[(0.0, "lead in rate")]
    assert row["domain"] > 10 * TINY.decoys / N_NEURONS  # of each domain there are so many
    assert row["domain"] > 0.3


def test_position_neurons_fool_precision_in_the_language_of_short_sentences_alone(compared):
    part = compared[
        (compared["effect"] == 0)
        & (compared["selector"] == "precision of gate")
        & (compared["decoys"] == ALL)
    ]
    by_language = part.groupby("language")["position"].sum()
    assert by_language[TINY.languages[-1]] >= TINY.planted  # of twice as many, in two models
    assert by_language.drop(TINY.languages[-1]).sum() == 0


def test_both_ends_of_the_gates_precision_hold_half_the_planted_neurons(summary):
    """A gate that rises on its language is at the top; the bottom is other languages' neurons.

    An output that falls where the gate rises is at the bottom, and half of all do.
    """
    assert summary.loc[(6.0, "precision of gate, both ends"), "recall"] == 0.5
    top, both = (
        summary.loc[(6.0, f"precision of output{ends}"), "recall"] for ends in ("", ", both ends")
    )
    assert top < 0.7
    assert both > top + 0.2


# ---------------------------------------------------------------- one kind of decoy at a time


@pytest.mark.usefixtures("_built_once")
def test_some_decoys_alone_are_made_up_of_models_with_all_and_with_none():
    """A model that was really built with them, read and measured, beside the mixture."""
    every, full = judges.planted_and_measured(TINY, 6.0, 0, DECOYS)
    _, bare = judges.planted_and_measured(TINY, 0.0, 0, decoys=())
    truth, mixed = judges.with_decoys(full, bare, every, ("script", "rare"))
    expected, seen = judges.planted_and_measured(TINY, 6.0, 0, ("script", "rare"))
    assert torch.equal(truth.kind, expected.kind)
    assert truth.selection == expected.selection
    assert set(truth.kind.unique().tolist()) == {0, 1, KINDS.index("rare"), KINDS.index("script")}
    # A gate a hair from zero may fall to the other side where the norm differs by rounding.
    assert (mixed["rate"] - seen["rate"]).abs().max() < 0.002
    for name in ("gate_mean", "removal_effect"):
        one, other = mixed[name], seen[name]
        assert torch.allclose(one, other, rtol=0.05, atol=0.01)
    assert (mixed["gate_precision"] - seen["gate_precision"]).abs().max() < 0.05
    assert (mixed["rate"] - full["rate"]).abs().max() > 0.5  # the busy ones are gone


def test_without_decoys_lape_and_precision_recover_what_is_planted(by_decoys):
    for selector in ("entropy (LAPE)", "LAPE as published", "precision of gate"):
        assert by_decoys.loc[(NONE, 6.0, selector), "recall"] >= 0.95


def test_each_kind_of_decoy_alone_fools_who_looks_at_the_wrong_thing(by_decoys):
    recall = by_decoys["recall"]
    for fooled, by, effect in (
        ("rate (LAP)", "busy", 6.0),
        ("removal effect (PLND)", "busy", 6.0),
        ("entropy alone", "rare", 6.0),
        ("entropy (LAPE)", "script", 2.0),
        ("entropy less peak", "script", 2.0),
    ):
        assert recall[(NONE, effect, fooled)] > recall[(by, effect, fooled)] + 0.3, (fooled, by)
    # And nobody else: the busy bar is what rare neurons cannot pass.
    assert recall[("busy", 6.0, "entropy (LAPE)")] == recall[(NONE, 6.0, "entropy (LAPE)")]
    assert recall[("rare", 6.0, "entropy (LAPE)")] == recall[(NONE, 6.0, "entropy (LAPE)")]


def test_the_difference_between_two_is_paired_and_over_pairs_of_languages():
    rows = [
        {"selector": name, "decoys": ALL, "effect": 1.0, "seed": seed, "language": code}
        | {"found": base + more + place, "planted": 20}
        for name, more in (("a", 2), ("b", 0))
        for seed, base in ((0, 1), (1, 7))
        for place, code in enumerate(("en", "de", "zh", "ja"))
    ]
    frame = pd.DataFrame(rows)
    even = judges.difference_in_recall(frame, ("a", ALL), ("b", ALL), 1.0)
    assert even.value.item() == pytest.approx(0.1)
    assert even.high - even.low == pytest.approx(0, abs=1e-9)  # every pair differs by the same
    frame.loc[[0, 1], "found"] += 8  # both languages of a script, in one model
    found = judges.difference_in_recall(frame, ("a", ALL), ("b", ALL), 1.0)
    assert found.value.item() == pytest.approx(0.2)
    # Four clusters, en and de of a model together: sums of deviations 0.6 and three times -0.2.
    assert found.standard_error.item() == pytest.approx(math.sqrt(4 / 3 * (0.36 + 0.12)) / 8)


def test_claims_are_about_the_largest_effect_and_follow_from_the_table(compared, by_decoys):
    measured = judges.measures(compared, by_decoys.reset_index())
    claims = judged(stated("recover_planted"), measured, "here")
    found = {claim.name: claim for claim in claims}
    assert len(found) == len(claims) == 5
    for name, selector, decoys in (
        ("planted-entropy-none", "entropy (LAPE)", NONE),
        ("planted-precision-all", "precision of gate", ALL),
    ):
        row = by_decoys.loc[(decoys, 6.0, selector)]
        assert (found[name].value, found[name].low) == (row["recall"], row["recall_low"])
    random = by_decoys.loc[(ALL, 6.0, "random"), "recall"]
    assert random < 0.05
    assert found["planted-precision-all"].control == random
    more = judges.difference_in_recall(compared, ("precision of gate", ALL), ("random", ALL), 6.0)
    assert found["planted-precision-all"].difference == pytest.approx(more.value.item())
    less = by_decoys.loc[(NONE, 6.0, "entropy (LAPE)"), "recall"]
    beside = by_decoys.loc[("script", 6.0, "entropy (LAPE)"), "recall"]
    assert found["planted-entropy-script"].value == pytest.approx(less - beside)
    of_script = (compared["selector"] == "entropy (LAPE)") & (compared["decoys"] == "script")
    lost = compared.assign(found=compared["found"].mask(of_script, 0))
    measured = judges.measures(lost, by_decoys.reset_index())
    (claim,) = judged(stated("recover_planted"), measured, "here")[-1:]
    assert (claim.name, claim.value) == ("planted-entropy-script", pytest.approx(less))


def test_the_table_on_the_screen_has_every_selector_effect_and_kind(by_decoys):
    text = judges.shown(by_decoys.reset_index())
    assert all(name in text for name in COMPARED)
    first, second = text.split("effect 6, by decoys")
    assert "2.0" in first.splitlines()[2]
    header = second.splitlines()[2].split()
    assert header == ["decoys", *judges.VARIANTS]


# ---------------------------------------------------------------- causes


def test_switching_planted_neurons_off_costs_their_own_language_most(models):
    matrix = judges.ablate_categories(TINY, models[6.0], torch.Generator().manual_seed(4), 10)
    diagonal = matrix.diagonal()
    assert diagonal.largest_in_row == diagonal.largest_in_column == TINY.languages
    assert (diagonal.own_minus_others.low > 0).all()
    own = matrix.increase.value.diagonal()
    assert own.min() > 0.1
    assert own.min() > 10 * matrix.control.value.abs().max()


def test_without_an_effect_there_is_no_language_to_lose():
    row = judges.losses(TINY, (0.0,), seed=0, n_sentences=5).iloc[0]
    assert row["log_odds"] == 0
    assert row["p_own"] == row["p_other"]
    assert abs(row["own"]) < 0.1


# ---------------------------------------------------------------- at the door


def test_designs_that_cannot_be_are_refused(generator, tmp_path):
    with pytest.raises(ValueError, match="two pairs or more"):
        Design(languages=("en", "de", "fr"))
    with pytest.raises(ValueError, match="dimensions are needed and d_model is 64"):
        Design(d_model=64)
    with pytest.raises(ValueError, match="noisy are no decoys; choose among busy, rare"):
        subject.plant(TINY, 1.0, generator, tmp_path, decoys=("noisy",))
    with pytest.raises(ValueError, match="leave half of them as background"):
        subject.plant(replace(TINY, planted=200), 1.0, generator, tmp_path)


def test_fewer_are_chosen_where_fewer_are_busy():
    rate = torch.full((2, 1, 40), 0.1, dtype=torch.float64)
    rate[0, 0, :3] = 0.9
    chosen = least(rate, Settings(n=5))
    assert rearrange(chosen, "language 1 neuron -> language neuron").sum(dim=1).tolist() == [3, 0]
