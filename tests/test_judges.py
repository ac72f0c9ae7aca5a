"""Judging methods on a model: the same numbers as one method at a time, with less work."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch

import interp
from experiments import compare_methods, judges, recover_planted
from experiments.judges import Effects, Switching
from experiments.method_findings import (
    GATE,
    KOJIMA,
    LAP,
    LAPE,
    LAVE,
    MEASURES,
    RANDOM,
    findings,
    measures,
)
from experiments.runner import stated
from experiments.study import Study
from interp.inference.claims import Claim
from interp.inference.statements import judged
from interp.interventions.edits import difference_of_means, scale
from interp.results.words import NOTHING
from interp.scores.average_precision import measure_precision
from interp.scores.choosers import Measured, Measurement, measured
from interp.scores.methods import COMPARED, Settings
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> interp.NeuronModel:
    folder = tmp_path_factory.mktemp("model")
    tiny_models.build("qwen2", folder)
    return interp.load(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def reading(model) -> interp.Corpora:
    return interp.read_corpora(
        made_up(30), LANGUAGES, model, block_length=24, n_shards=3, hygiene="off", progress=False
    )


@pytest.fixture(scope="module")
def chosen(model) -> dict[str, interp.NeuronSelection]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(LANGUAGES), model.n_layers, model.d_mlp)
    masks = {name: torch.rand(shape, generator=generator) < 0.2 for name in ("random", "other")}
    masks["other"][1] = False  # a language without neurons
    return {name: interp.NeuronSelection(mask, LANGUAGES) for name, mask in masks.items()}


# ---------------------------------------------------------------- what is chosen from


@pytest.mark.slow
def test_what_is_read_in_parts_is_what_is_read_at_once(model, tmp_path: Path):
    study = Study(languages=LANGUAGES)
    text = {code: [line[:40] for line in lines] for code, lines in made_up(32).items()}
    found = judges.grown(model, text, study, tmp_path / "parts")
    assert len(found) == len(judges.SHARES)
    sizes = [int((part.sentence_means.labels == 0).sum()) for part in found]
    assert sizes == [4, 8, 16, 32]
    sentences = interp.read_sentences(
        text, LANGUAGES, model, n_shards=1, hygiene="off", progress=False
    )
    keep = interp.Keep(moments=True, sentence_means=("pre", "post"))
    run = interp.collect(model, sentences, keep=keep, progress=False)
    stats, moments, means = run.firing, run.moments, run.sentence_means
    last = found[-1]
    assert torch.equal(last.firing.fired.sum(dim=0), stats.fired.sum(dim=0))
    assert torch.equal(last.firing.tokens.sum(dim=0), stats.tokens.sum(dim=0))
    assert torch.allclose(last.moments.gate_mean, moments.gate_mean, atol=1e-6)
    assert last.tokens == round(stats.tokens.double().sum(dim=0).mean().item())
    one, other = (
        measure_precision(each).average_precision for each in (last.sentence_means, means)
    )
    assert torch.allclose(one, other, atol=1e-3)  # batches round differently, and ranks follow

    seen = measured(last, torch.Generator())
    width = one.shape[2] // 2
    assert torch.equal(seen["gate_precision"], one[:, :, :width])
    assert torch.equal(seen["output_precision"], one[:, :, width:])
    assert torch.equal(seen["rate"], last.firing.rate)


def test_every_selector_chooses_as_many_as_asked_for_and_no_more():
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.rand(3, 2, 100, generator=generator, dtype=torch.float64)
        for name in get_args(Measurement)
    }
    measure = {name: lambda value=value: value for name, value in values.items()}
    seen = Measured(("en", "de", "zh"), generator, measure)
    for name, method in COMPARED.items():
        selection = interp.selections.selection_of(method, seen, Settings(n=4))
        counts = selection.counts().values()
        if name == "LAPE as published":
            assert sum(counts) >= 12  # a neuron may belong to several
        else:
            assert max(counts) <= 4, name
            assert name.startswith(("entropy", "mean")) or min(counts) == 4, name


# ---------------------------------------------------------------- switched off


@pytest.mark.slow
def test_effects_are_those_of_one_matrix_after_the_other(model, reading, chosen, tmp_path: Path):
    generator = torch.Generator().manual_seed(1)
    folder = tmp_path / "off"
    found = judges.effects(model, chosen, reading, generator, progress=False, out=folder)
    assert torch.equal(found.off[:, 1, 1], found.nothing)  # no neurons, nothing changed
    for name in ("random", "other"):
        kept = chosen[name]
        if name == "other":
            kept = kept.languages_only((LANGUAGES[0], LANGUAGES[2]))
        matrix = interp.perplexity_matrix(model, kept, reading, n_draws=0, progress=False)
        mine = found.matrix(name)
        rows = [mine.off.index(code) for code in matrix.off]
        assert torch.allclose(mine.increase.value[rows], matrix.increase.value, atol=1e-6)
        assert torch.allclose(mine.increase.low[rows], matrix.increase.low, atol=1e-6)
    whole = found.matrix("random").diagonal()
    selective = found.selectivity("random")
    for name in ("value", "low", "high"):
        assert getattr(selective, name) == pytest.approx(getattr(whole.mean, name).item())
    drawn = chosen["random"].random_like(
        torch.Generator().manual_seed(1), exclude=chosen["random"].union()
    )
    code = LANGUAGES[1]
    with interp.intervene(model, drawn[code], interp.deactivate):
        block = interp.perplexity_matrix(
            model, drawn.languages_only((code,)), reading, edit=scale(1.0), n_draws=0
        )
    expected = block.losses.nats[:, 0, 1]
    assert torch.allclose(found.random[:, 0, 1], expected)


def by_hand() -> Effects:
    """Two languages, three equal shards; each method costs its own language as many nats."""
    cost = {"random": 0.0, LAPE: 0.3, GATE: 0.1, KOJIMA: 0.2}
    mask = torch.ones(2, 1, 4, dtype=torch.bool)
    off = torch.stack([torch.tensor([[each + 0.05, 0.05], [0.0, each]]) for each in cost.values()])
    nats = 10 * off.double().expand(3, -1, -1, -1) + 20
    return Effects(
        off=nats,
        random=torch.full((3, 4, 2), 20.1, dtype=torch.float64),
        nothing=torch.full((3, 2), 20.0, dtype=torch.float64),
        tokens=torch.full((3, 2), 10),
        chosen=dict.fromkeys(cost, interp.NeuronSelection(mask, ("de", "ja"))),
        languages=("de", "ja"),
    )


def test_selectivity_is_the_own_rise_less_that_of_the_others():
    found = by_hand()
    assert found.selectivity(LAPE).value == pytest.approx(0.3)
    assert found.difference(LAPE, GATE).value == pytest.approx(0.2)
    assert found.difference(LAPE, GATE).low == pytest.approx(0.2)  # the shards are alike
    row = found.row(LAPE, RANDOM)
    assert row["own"] == pytest.approx(0.325)
    assert row["others"] == pytest.approx(0.025)
    assert row["random_per_layer"] == pytest.approx(0.01)
    assert row["selectivity_control"] == pytest.approx(0.0)
    table = found.by_language().set_index(["method", "language"])
    assert table.loc[(LAPE, "de"), "own"] == pytest.approx(0.35)
    assert table.loc[(LAPE, "de"), "others"] == pytest.approx(0.05)


# ---------------------------------------------------------------- pushed


def test_rows_of_one_batch_are_pushed_as_each_language_alone_is(model, chosen):
    sentences = interp.read_sentences(
        made_up(20), LANGUAGES, model, n_shards=1, hygiene="off", progress=False
    )
    keep = interp.Keep(moments=True)
    moments = interp.collect(model, sentences, keep=keep, progress=False).moments
    picked, ids = chosen["random"], torch.arange(5, 17).reshape(2, 6)
    seen: list[torch.Tensor] = []

    def look(values: torch.Tensor, hook: object) -> None:
        seen.append(values.clone())

    sites = [(model.site(model.n_layers - 1, "resid_post"), look)]
    with torch.no_grad(), judges.pushed_by_rows(model, moments, picked, 3.0, 2), model.hooks(sites):
        model.body(ids.repeat(len(LANGUAGES), 1))
    for code in LANGUAGES:
        edit = difference_of_means(moments, code, 3.0, site="post")
        with torch.no_grad(), interp.intervene(model, picked[code], edit), model.hooks(sites):
            model.body(ids)
    for place in range(len(LANGUAGES)):
        rows = seen[0][2 * place : 2 * place + 2]
        assert torch.allclose(rows, seen[1 + place], atol=1e-5)
    assert not torch.allclose(seen[1], seen[2], atol=1e-3)


@pytest.mark.slow
def test_writing_resumes_after_the_last_method_that_wrote(
    model, chosen, tmp_path: Path, monkeypatch
):
    text = made_up(20)
    sentences = interp.read_sentences(
        text, LANGUAGES, model, n_shards=1, hygiene="off", progress=False
    )
    keep = interp.Keep(moments=True)
    moments = interp.collect(model, sentences, keep=keep, progress=False).moments
    guards = interp.evaluations.natural_guard(model, text, max_tokens=8, progress=False)
    settings = {"strength": 1.0, "n": 2, "max_new_tokens": 4, "seed": 0}
    whole = judges.switching(model, chosen, moments, guards, **settings)
    write, calls = interp.evaluations.generate_texts, []

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*given, **named)

    monkeypatch.setattr(interp.evaluations, "generate_texts", counted)
    with pytest.raises(KeyboardInterrupt):
        judges.switching(model, chosen, moments, guards, **settings, out=tmp_path)
    resumed = judges.switching(model, chosen, moments, guards, **settings, out=tmp_path)
    assert len(calls) == 1 + len(chosen) + 1  # one per method, and the one that was stopped
    assert torch.equal(resumed.inside, whole.inside)
    assert torch.equal(resumed.good, whole.good)
    with pytest.raises(ValueError, match="another strength"):
        judges.switching(
            model, chosen, moments, guards, **{**settings, "strength": 2.0}, out=tmp_path
        )


def written_by_hand() -> Switching:
    good = torch.zeros(5, 2, 4, dtype=torch.bool)
    good[2], good[4, 0] = True, True  # LAPE always, Kojima's towards the first
    return Switching(good, good, (NOTHING, RANDOM, LAPE, GATE, KOJIMA), ("de", "ja"))


def test_shares_of_texts_are_over_all_languages_and_differences_over_texts():
    found = written_by_hand()
    row = found.row(KOJIMA)
    assert (row["switching"], row["switching_control"]) == (0.5, 0.0)
    assert row["switching_low"] < 0.5 < row["switching_high"]
    assert found.difference(LAPE, RANDOM).value == 1
    half = found.difference(KOJIMA, RANDOM)
    assert half.value == pytest.approx(0.5)
    assert half.standard_error == pytest.approx(0.5)  # one of two languages is always reached
    table = found.by_language().set_index(["method", "language"])
    assert table.loc[(KOJIMA, "de"), "good"] == 1
    assert table.loc[(KOJIMA, "ja"), "good"] == 0


# ---------------------------------------------------------------- what comes of it


@pytest.fixture
def four() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """A table of four methods, what each found, and how stable it is in each language."""
    recall = {RANDOM: 0, LAPE: 6, GATE: 10, KOJIMA: 5}
    each = pd.DataFrame(
        [
            {"selector": name, "decoys": "all", "effect": 6.0, "seed": seed, "language": code}
            | {"found": found, "planted": 10}
            for name, found in recall.items()
            for seed in (0, 1)
            for code in ("de", "ja")
        ]
    )
    jaccard = {RANDOM: 0.0, LAPE: 0.7, GATE: 0.4, KOJIMA: 0.5}
    stable = pd.DataFrame(
        [
            {"method": name, "tokens": tokens, "language": code, "chance": 0.01}
            | {"jaccard": value * tokens / 200 + aside}
            for name, value in jaccard.items()
            for tokens in (100, 200)
            for code, aside in (("de", 0.0), ("ja", 0.02))
        ]
    )
    effect, written = by_hand(), written_by_hand()
    curves = compare_methods.over_languages(stable).set_index(["method", "tokens"])
    rows = []
    for name, found in recall.items():
        row = {"method": name, "recovery_alone": 1.0, "recovery": found / 10}
        row |= effect.row(name, RANDOM) | written.row(name)
        rows.append(row | {"stability": curves.loc[(name, 200), "jaccard"]})
    table = pd.DataFrame(rows)
    for column in ("recovery_alone", "recovery", "stability"):
        for end in ("_low", "_high", "_control"):
            table[column + end] = table[column]
    return table, each, stable


def claimed(each: pd.DataFrame, stable: pd.DataFrame) -> list[Claim]:
    effect = by_hand()
    measured = measures(each, with_others(effect), written_by_hand(), stable)
    return judged(stated("compare_methods"), measured, "here")


def with_others(effect: Effects) -> Effects:
    """The same with two methods more: LAP does what LAPE does, LAVE what precision of gate does."""
    names = [*effect.chosen, LAP, LAVE]
    rows = [list(effect.chosen).index(name) for name in (*effect.chosen, LAPE, GATE)]
    chosen = {
        name: list(effect.chosen.values())[row] for name, row in zip(names, rows, strict=True)
    }
    off, random = effect.off[:, rows], effect.random[:, rows]
    return replace(effect, chosen=chosen, off=off, random=random)


def test_claims_are_about_methods_that_are_named_beforehand(four):
    _, each, stable = four
    claims = {claim.name: claim for claim in claimed(each, stable)}
    assert claims["methods-recovery-lape-gate"].value == pytest.approx(-0.4)
    assert claims["methods-recovery-lape-gate"].verdict == "does not hold"
    assert claims["methods-selectivity-lape-gate"].value == pytest.approx(0.2)
    assert claims["methods-lape-rate"].value == 0.0
    assert claims["methods-lape-lave"].value == pytest.approx(0.2)
    assert claims["methods-stability-lape-gate"].value == pytest.approx(0.3)
    own = claims["methods-lape-own"]
    assert own.source == "Tang et al. (2024)"
    assert (own.value, own.control) == (pytest.approx(0.3), pytest.approx(0.0))
    assert own.difference == pytest.approx(0.3)
    assert claims["methods-kojima-switch"].value == pytest.approx(0.5)
    assert not any(name.endswith("best") for name in claims)


def test_the_page_says_what_the_table_says(four):
    table, each, stable = four
    page = findings(table, claimed(each, stable), "Babel")
    lines = page.splitlines()
    recovery = next(line for line in lines if line.startswith("- Planted neurons found among"))
    assert "precision of gate 1 (1 to 1), entropy (LAPE) 0.6" in recovery
    assert "last is random with 0. LAPE ranks 2 of 4 with 0.6" in recovery
    cost = next(line for line in lines if line.startswith("- Points of recovery"))
    assert "random (100), precision of output, both ends (50), entropy (LAPE) (40)." in cost
    correlations = [line for line in lines if line.startswith("- Across 3 methods")]
    assert any(
        "selectivity and switching have a rank correlation of" in line for line in correlations
    )
    assert all(line.endswith(", Babel.") for line in correlations)
    assert "**holds**" in page


def test_a_method_that_chooses_nothing_is_not_ranked(four):
    table, each, stable = four
    columns = [name for name in table.columns if name.startswith("stability")]
    table.loc[table["method"] == KOJIMA, columns] = float("nan")
    page = findings(table, claimed(each, stable), "Babel")
    ranks = {line.split(":")[0]: line for line in page.splitlines() if "LAPE ranks" in line}
    assert "of 4 with" in ranks["- Planted neurons found among all decoys"]
    assert "of 3 with" in ranks["- Share of good texts in the language under a push, Babel"]
    assert "- Precision of output, both ends chooses no neurons of Babel.\n" in page
    assert "nan" not in page


def test_the_figure_s_table_has_each_mark_once(four):
    found = compare_methods.comparison(four[0])
    assert len(found) == len(compare_methods.MEASURES) * 4
    assert list(compare_methods.MEASURES) == list(MEASURES)
    row = found[(found["method"] == LAPE) & (found["measure"].str.startswith("own loss"))].iloc[0]
    assert row["value"] == pytest.approx(0.3)
    interp.plots.method_comparison(found)


@pytest.mark.campaign
def test_the_study_runs_whole_on_the_shipped_model(tmp_path: Path, capsys):
    config = replace(
        compare_methods.experiment.presets["tiny"][1],
        study=Study(languages=("de", "ja"), tokens=480, n_shards=2, block_length=32),
        neurons=40,
        read=64,
        n_texts=2,
        max_new_tokens=8,
        guard_texts=20,
        planted=replace(
            recover_planted.experiment.presets["tiny"][1],
            design=replace(recover_planted.TINY, sentences=40),
            seeds=1,
        ),
        out=tmp_path,
    )
    compare_methods.experiment.run(config)
    table = pd.read_csv(tmp_path / "methods.csv").set_index("method")
    assert list(table.index) == list(COMPARED)
    assert table.loc["random", "stability"] < 0.1 < table.loc[LAPE, "stability"]
    assert table.loc[GATE, "recovery"] > 0.8
    languages = pd.read_csv(tmp_path / "languages.csv")
    assert len(languages) == 2 * len(COMPARED)
    assert set(pd.read_csv(tmp_path / "stability.csv")["method"]) == set(COMPARED)
    assert len(interp.inference.load_claims(tmp_path / "claims.json")) == 8
    assert (tmp_path / "findings.md").read_text() in capsys.readouterr().out
