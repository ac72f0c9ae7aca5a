"""What is claimed of neurons that are off: on hand-made numbers, and on texts of a tiny model."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import pytest
import torch

import interp
from experiments import deactivate_neurons as study
from experiments import deactivation_claims as claims
from experiments.runner import stated
from experiments.study import Study
from interp.evaluations.losses import Losses
from interp.inference.claims import Claim
from interp.inference.statements import Measurement, judged
from interp.results.words import NOTHING
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up

CODES = ("en", "de", "fr", "ja")


def claimed(measured: Mapping[str, Measurement | None]) -> dict[str, Claim]:
    """Of the statements of the study, those that these numbers are about."""
    some = [each for each in stated("deactivate_neurons") if each.name in measured]
    return {claim.name: claim for claim in judged(some, measured, "made up")}


# ---------------------------------------------------------------- which neurons


def firing(generator: torch.Generator) -> interp.FiringStats:
    """Four languages, two layers of 50 neurons, three shards of 100 tokens each."""
    fired = torch.randint(0, 60, (3, 4, 2, 50), generator=generator)
    for language in range(4):
        fired[:, :, 1, language] = 0
        fired[:, language, 1, language] = 95  # one of its own
    return interp.FiringStats(fired=fired, tokens=torch.full((3, 4), 100), languages=CODES)


def busy_in_plain_python(stats: interp.FiringStats, layer: int, neuron: int) -> set[str]:
    rates = sorted(stats.rate.flatten().tolist())
    threshold = rates[round(0.95 * len(rates)) - 1]
    return {
        code
        for row, code in enumerate(stats.languages)
        if stats.rate[row, layer, neuron].item() > threshold
    }


def misassigned(
    selection: interp.NeuronSelection, rate: torch.Tensor, quantile: float = 0.95
) -> int:
    """Selected neurons whose languages are not those in which they are busy: those in which their
    rate is above the quantile of all rates."""
    rate = rate.double()
    threshold = rate.flatten().kthvalue(round(quantile * rate.numel())).values
    wrong = (selection.mask != (rate > threshold)).any(dim=0)
    return int((wrong & selection.union()).sum())


def test_neurons_belong_to_the_languages_in_which_they_are_busy_and_to_no_other(generator):
    stats = firing(generator)
    found = interp.select_by_entropy(stats, 0.1)
    assert int(found.union().sum()) == round(0.1 * stats.rate[0].numel())
    assert misassigned(found, stats.rate) == 0
    for layer, neuron in found.union().nonzero().tolist():
        mine = {code for code in CODES if found[code][layer, neuron]}
        assert mine == busy_in_plain_python(stats, layer, neuron)
    drawn = found.random_like(generator, exclude=found.union())
    assert misassigned(drawn, stats.rate) > 5
    mask = found.mask.clone()
    mask[1, 1, 0] = True  # one belongs to a language more, one to another than it should
    mask[:, 1, 1] = torch.tensor([True, False, False, False])
    assert misassigned(replace(found, mask=mask), stats.rate) == 2


@pytest.mark.slow
def test_layers_are_the_first_two_and_the_last_quarter_and_their_bar_is_an_even_spread(generator):
    stats = firing(generator)  # a neuron of its own for each language, in the second of two layers
    silent = torch.zeros(3, 4, 2, 50, dtype=torch.int64)

    def about(*layers: torch.Tensor) -> dict[str, Claim]:
        deep = interp.FiringStats(
            fired=torch.cat(layers, dim=2), tokens=stats.tokens, languages=CODES
        )
        return claimed(claims.about_layers(deep, 0.02, generator))

    early, late = about(stats.fired, silent), about(silent, stats.fired)
    for found, (first, last) in ((early, (1.0, 0.0)), (late, (0.0, 1.0))):
        assert (found["lape-first-layers"].value, found["lape-first-layers"].bar) == (first, 0.5)
        assert (found["lape-last-layers"].value, found["lape-last-layers"].bar) == (last, 0.25)
    verdicts = [claim.verdict for found in (early, late) for claim in found.values()]
    assert verdicts == ["holds", "does not hold", "does not hold", "holds"]


def test_a_neuron_of_two_languages_counts_twice_where_it_is():
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[:, 0, 1] = True  # both languages' neuron, in the first layer
    mask[0, 1, 2:4] = True  # two neurons of one language, in the second
    mask[1, 3, 0] = True
    neurons = interp.NeuronSelection(mask, ("de", "en"))
    assert claims.in_layers(neurons, slice(0, 1)) == 2 / 5
    assert claims.in_layers(neurons, slice(0, 2)) == 4 / 5
    assert claims.in_layers(neurons, slice(3, 4)) == 1 / 5


def sharing(**neurons: set[int]) -> interp.NeuronSelection:
    mask = torch.zeros(len(neurons), 1, 30, dtype=torch.bool)
    for row, chosen in enumerate(neurons.values()):
        mask[row, 0, sorted(chosen)] = True
    return interp.NeuronSelection(mask, tuple(neurons))


def test_the_lead_of_a_pair_is_over_the_third_of_the_others():
    sets = {"en": {0, 1, 2, 3}, "de": {2, 3, 4, 5}, "fr": {3, 4, 5, 6}, "es": {5, 6, 7, 8}}
    found = sharing(**sets)
    index = {
        (a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b])
        for place, a in enumerate(sets)
        for b in list(sets)[place + 1 :]
    }
    for pair, mine in index.items():
        others = sorted((value for other, value in index.items() if other != pair), reverse=True)
        assert claims.lead_of(found, [pair]).item() == pytest.approx(mine - others[2])
        assert claims.lead_of(found, [pair[::-1]]) == claims.lead_of(found, [pair])
    two = [("de", "fr"), ("en", "es")]
    others = sorted((value for pair, value in index.items() if pair not in two), reverse=True)
    expected = index["de", "fr"] - others[2]
    assert claims.lead_of(found, two).item() == pytest.approx(expected)


def test_relatives_are_claimed_where_there_are_enough_languages(generator):
    stats = firing(generator)
    drawn = interp.select_by_entropy(stats, 0.1)
    assert not claimed(claims.about_relatives(stats, 0.1, drawn, generator))  # no fr-es, no zh-ja
    four = interp.FiringStats(
        fired=stats.fired, tokens=stats.tokens, languages=("zh", "de", "fr", "ja")
    )
    drawn = replace(drawn, languages=four.languages)
    found = claimed(claims.about_relatives(four, 0.1, drawn, generator))
    assert list(found) == ["lape-neighbors"]


# ---------------------------------------------------------------- what switching off does


def matrix(
    own: float | list[float],
    others: float,
    chance: float | list[float],
    alike: float | None = None,
) -> interp.evaluations.PerplexityMatrix:
    """Nats per token more, the same on three shards of 100 tokens but for a little noise; with
    random neurons `chance` more, with those that fire alike `alike` more on the own language."""
    n, noise = len(CODES), torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    more = torch.full((n, n), others, dtype=torch.float64)
    more.diagonal().copy_(torch.tensor(own).double())
    nothing = torch.full((3, 1, n), 400.0, dtype=torch.float64)
    losses = Losses(
        nats=torch.cat([nothing, nothing + 100 * more + noise / 10], dim=1),
        tokens=torch.full((3, n), 100),
        bytes=torch.full((3, n), 400),
        interventions=(NOTHING, *CODES),
        languages=CODES,
    )
    random = nothing + 100 * torch.tensor(chance).double() + noise[:, :1] / 10
    random = random.repeat(1, n, 1)[:, None]
    rate_matched = random[:, 0].clone()
    if alike is not None:
        rate_matched += 100 * alike * torch.eye(n)
    return interp.evaluations.PerplexityMatrix(
        losses=losses,
        random=random,
        rate_matched=rate_matched,
        neurons=(5,) * n,
        edit=("deactivate",) * n,
    )


NEURONS = {"en": {0, 1}, "de": {1, 2}, "fr": {2, 3}, "ja": {3, 4}}


def about(found: interp.evaluations.PerplexityMatrix) -> dict[str, Claim]:
    return claimed(claims.about_effects(found, sharing(**NEURONS)))


def test_effects_have_those_of_random_neurons_beside_them():
    found = about(matrix(0.3, 0.05, 0.01))
    assert found["lape-own-language"].value == pytest.approx(0.25, abs=0.01)
    assert abs(found["lape-own-language"].control) < 0.01
    assert found["lape-own-language"].verdict == "holds"
    assert found["lape-diagonal"].value == 1
    assert found["lape-diagonal"].control < 1
    assert found["lape-diagonal"].verdict == "cannot tell"  # three of three languages are few
    assert found["lape-random"].verdict == "holds"
    assert found["lape-random-rate"].verdict == "holds"
    assert found["lape-english"].verdict != "holds"  # as much as the others
    spared = about(matrix([0.0, 0.3, 0.3, 0.3], 0.05, 0.01))
    assert spared["lape-diagonal"].value == 1  # three of three: English is not counted
    blind = about(matrix(0.05, 0.05, 0.05))
    assert blind["lape-own-language"].verdict != "holds"
    assert blind["lape-random"].verdict == "does not hold"


def test_neurons_that_fire_alike_are_the_control_where_a_language_suffers_most():
    found = about(matrix(0.3, 0.05, 0.01, alike=0.3))
    assert found["lape-own-language"].control == pytest.approx(0.3, abs=0.01)
    assert found["lape-own-language"].verdict == "no more than its control"
    assert found["lape-random"].verdict == "holds"
    assert found["lape-random-rate"].verdict == "does not hold"


def test_english_is_compared_with_the_language_that_comes_nearest():
    least = about(matrix([0.1, 0.4, 0.3, 0.5], 0.0, 0.0))["lape-english"]
    assert least.value == pytest.approx(0.1 - 0.3, abs=0.005)  # not the mean, nor the largest
    assert least.verdict == "holds"
    second = about(matrix([0.2, 0.4, 0.1, 0.5], 0.0, 0.0))["lape-english"]
    assert second.value == pytest.approx(0.2 - 0.1, abs=0.005)
    assert second.verdict == "does not hold"
    # The decoy: random neurons spare English as much.
    blind = about(matrix([0.1, 0.4, 0.3, 0.5], 0.0, [0.1, 0.4, 0.3, 0.5]))["lape-english"]
    assert blind.difference == pytest.approx(0.0, abs=0.005)
    assert blind.verdict == "no more than its control"


def test_the_effect_of_a_pair_is_the_mean_of_both_directions():
    square = torch.tensor([[9.0, 1, 2], [3, 9, 4], [6, 8, 9]]).double()
    assert claims.off_diagonal(square).tolist() == [2, 4, 6]


def test_that_who_shares_suffers_is_told_from_what_any_neurons_do():
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(10, 1, 60, generator=generator) < 0.3
    neurons = interp.NeuronSelection(mask, tuple("abcdefghij"))
    shared = neurons.jaccard().double()
    noise = torch.rand(10, 10, generator=generator).double() / 1000
    noise = noise + noise.T

    def verdict(own: torch.Tensor, chance: torch.Tensor) -> str:
        measured = claims.related(neurons, own, chance)
        (claim,) = claimed({"lape-related": measured}).values()
        assert claim.value == claims.rank_correlation(*map(claims.off_diagonal, (shared, own)))
        assert claim.control == claims.rank_correlation(*map(claims.off_diagonal, (shared, chance)))
        return claim.verdict

    follows, blind = shared + noise, noise
    assert verdict(follows, blind) == "holds"
    assert verdict(follows, follows) == "no more than its control"
    assert verdict(blind, follows) != "holds"
    # Whichever language is left out, the order is the same, so the interval is a point.
    (claim,) = claimed({"lape-related": claims.related(neurons, shared, blind)}).values()
    assert (claim.low, claim.high) == pytest.approx((1, 1))


def test_a_share_is_led_where_a_cell_is_above_the_means_of_its_row_and_column():
    square = torch.tensor([[3.0, 0, 0], [9, 5, 0], [0, 0, 2]]).double()
    assert claims.led(square, [0, 1, 2]).tolist() == [0, 1, 1]  # column of the first: 4
    assert claims.led(square, [1, 2]).tolist() == [1, 1]


def test_the_step_from_one_fraction_to_the_next_is_paired():
    sizes = {0.05: matrix(0.4, 0, 0), 0.01: matrix(0.1, 0, 0), 0.03: matrix(0.3, 0, 0)}
    found = claimed(claims.about_size(sizes))["lape-larger"]
    assert found.value == pytest.approx(0.1)  # from 0.3 to 0.4
    assert found.high - found.low < 1e-9  # the same noise in all
    assert found.verdict == "holds"
    uneven = claimed(
        claims.about_size({0.1: matrix(0.4, 0, 0), 0.2: matrix([0.9, 0.5, 0.3, 0.4], 0, 0)})
    )
    assert uneven["lape-larger"].value == pytest.approx(0.125)
    assert uneven["lape-larger"].verdict == "cannot tell"  # one language suffers less
    more = claimed(claims.about_size(sizes | {0.1: sizes[0.05]}))["lape-larger"]
    assert more.verdict != "holds"
    assert not claimed(claims.about_size({0.1: sizes[0.05]}))


# ---------------------------------------------------------------- what is written


def texts(own: str, others: str, chance: str, worse: float = 0.0) -> pd.DataFrame:
    """In which language texts are gone on with when neurons are off; "": in their own."""
    rows = []
    for begun in CODES:
        for off in (NOTHING, *CODES, "random"):
            for prompt in range(30):
                gone = {NOTHING: "", "random": chance, begun: own}.get(off, others)
                stays = prompt % 10 < 4 or not gone
                loss = 3 + prompt / 10 + (worse if off == begun else 0.0)
                row = {"off": off, "begun": begun, "prompt": prompt, "loss": loss}
                rows.append(row | {"language": begun if stays else gone})
    return pd.DataFrame(rows)


def test_what_own_neurons_do_to_writing_is_told_from_what_any_neurons_do():
    planted = texts(own="en", others="", chance="", worse=0.5)
    planted.loc[planted["off"] == "random", "loss"] += 0.2
    found = claimed(claims.about_writing(planted, CODES))
    assert found["lape-writing-leaves"].value == pytest.approx(0.6 * 3 / 4)  # English stays English
    assert found.pop("lape-writing-leaves").verdict == "cannot tell"  # three languages of four
    assert {claim.verdict for claim in found.values()} == {"holds"}
    assert found["lape-writing-worse"].value == pytest.approx(0.5)
    assert found["lape-writing-english"].value == pytest.approx(0.6)
    assert [claim.control for claim in found.values()] == pytest.approx([0.2, 0.0])
    # The decoy: whatever is off, texts leave as often, and not for English.
    decoy = texts(own="fr", others="fr", chance="fr")
    found = claimed(claims.about_writing(decoy, CODES))
    assert "holds" not in {claim.verdict for claim in found.values()}
    assert found["lape-writing-leaves"].value == 0
    assert found["lape-writing-leaves"].verdict == "cannot tell"  # in 120 texts nothing happened
    assert found["lape-writing-english"].value == 0
    # The other decoy: with random neurons off, texts go over to English as often.
    found = claimed(claims.about_writing(texts(own="en", others="", chance="en"), CODES))
    assert found["lape-writing-english"].value == pytest.approx(0.6)
    assert found["lape-writing-english"].verdict == "no more than its control"


def test_a_text_is_compared_with_those_of_its_prompt_and_left_out_where_one_has_no_loss():
    frame = texts("", "", "")
    places = (frame["begun"] == "de") & (frame["prompt"] == 3)
    frame.loc[places & (frame["off"] == "de"), "loss"] = 9.0
    frame.loc[places & (frame["off"] == "fr"), "loss"] = 6.0
    parts, begun, prompt = claims.values_by_off(frame, "loss", CODES)
    rows = (parts["own"] == 9.0).nonzero().flatten().tolist()
    assert len(rows) == 1
    assert (CODES[begun[rows[0]]], prompt[rows[0]].item()) == ("de", 3)
    assert parts["others"][rows[0]].item() == pytest.approx((6.0 + 3.3 + 3.3) / 3)
    assert parts[NOTHING][rows[0]].item() == pytest.approx(3.3)
    frame.loc[places & (frame["off"] == "random"), "loss"] = float("nan")
    assert {len(part) for part in claims.values_by_off(frame, "loss", CODES)[0].values()} == {119}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> interp.NeuronModel:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.build("qwen2", folder)
    return interp.load(folder, dtype=torch.float32)


@pytest.mark.slow
def test_every_prompt_is_gone_on_with_from_the_same_seed_whatever_is_off(model):
    config = replace(
        study.experiment.presets["tiny"][1],
        study=Study(languages=LANGUAGES),
        n_texts=3,
        begin=4,
        max_new_tokens=6,
    )
    reading = interp.read_corpora(
        made_up(30), LANGUAGES, model, block_length=24, n_shards=3, hygiene="off", progress=False
    )
    prompts = study.beginnings(reading, model, config)
    assert len(prompts) == 9
    ids = reading.rows[LANGUAGES[1]].ids[2]
    of_text = ids[ids != model.bos_id]
    assert prompts[5] == model.decode(of_text[:4].tolist()).rstrip("\ufffd")

    mask = torch.zeros(3, model.n_layers, model.d_mlp, dtype=torch.bool)
    mask[1] = True  # the first and the last language have no neurons
    found = interp.NeuronSelection(mask, LANGUAGES)
    frame = study.written(model, found, found, prompts, config)
    assert len(frame) == 9 * (1 + 3) + 9
    wide = frame.pivot(index=["begun", "prompt"], columns="off", values="text")
    assert (wide[LANGUAGES[0]] == wide[NOTHING]).all()
    assert (wide[LANGUAGES[2]] == wide[NOTHING]).all()
    assert (wide[LANGUAGES[1]] != wide[NOTHING]).any()
    # Random ones are off where a language's own are, and seeds are those of the prompts.
    for code in LANGUAGES:
        assert wide.loc[code, "random"].tolist() == wide.loc[code, code].tolist()

    table = study.writing_table(frame).set_index(["begun", "off"])
    assert len(table) == 12
    assert table.loc[(LANGUAGES[0], "own"), "same"] == 1
    assert table.loc[(LANGUAGES[1], "own"), "same"] < 1
    assert table.loc[(LANGUAGES[0], "another's"), "texts"] == 6


def test_a_written_table_counts_texts_in_their_own_language_and_in_english():
    frame = texts(own="en", others="fr", chance="").assign(text="the same", repetition=0.0)
    table = study.writing_table(frame).set_index(["begun", "off"])
    assert table.loc[("de", "own"), "in_language"] == pytest.approx(0.4)
    assert table.loc[("de", "own"), "in_english"] == pytest.approx(0.6)
    assert table.loc[("de", "another's"), "in_english"] == 0
    assert table.loc[("de", "random"), "in_language"] == 1
    assert table.loc[("en", "own"), "in_language"] == 1
