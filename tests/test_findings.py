"""The page of findings has the numbers of the tables that are kept."""

from pathlib import Path

import pandas as pd
import pytest

from experiments import findings
from experiments.findings import PAGE, ROOT
from interp.inference.claims import load_claims


@pytest.fixture
def matrix() -> pd.DataFrame:
    columns = ["off", "read", "own", "neurons", "increase", "increase_low", "increase_high"]
    rows = [
        ("nothing", "de", False, 0, 0.0, 0.0, 0.0, None, None),
        ("de", "de", True, 9, 0.5, 0.4, 0.6, 0.01, 0.02),
        ("de", "nl", False, 9, 0.25, 0.2, 0.3, None, None),
        ("nl", "nl", True, 7, 0.1, 0.05, 0.15, 0.03, 0.04),
        ("nl", "de", False, 7, 0.05, 0.0, 0.1, None, None),
    ]
    return pd.DataFrame(rows, columns=[*columns, "random", "rate_matched"])


def test_the_page_has_the_numbers_of_its_tables():
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    for name, block in findings.blocks().items():
        assert f"<!-- {name} -->\n{block}\n<!-- /{name} -->" in page, (
            "run python -m experiments.findings"
        )


def test_a_language_has_its_loss_its_controls_and_who_suffers_with_it(matrix: pd.DataFrame):
    header, _, german, dutch, mean = findings.by_language(matrix).splitlines()
    assert header.count("|") == german.count("|") == mean.count("|")
    assert german == "| German | 9 | 0.500 (0.400 to 0.600) | 0.010 | 0.020 | 0.25, Dutch |"
    assert dutch.endswith("| 0.030 | 0.040 | 0.05, German |")
    assert mean == "| mean | | 0.300 | 0.020 | 0.030 | 0.15, all |"


def test_sizes_are_those_of_each_share(matrix: pd.DataFrame):
    *_, line = findings.by_size({"0.003": matrix}).splitlines()
    assert line == "| 0.3 % | 7 to 9 | 0.30 | 0.15 |"


def test_a_language_shares_nothing_with_itself():
    rows = [("de", "de", 1.0, None), ("de", "nl", 0.5, 0.01), ("de", "ja", 0.1, 0.02)]
    overlap = pd.DataFrame(rows, columns=["language", "other", "jaccard", "chance"])
    said = findings.most_shared(overlap)
    assert said.startswith("German and Dutch share 50 % of the neurons that either has (by chance")
    assert said.endswith("German and Japanese 10 %.")


def test_a_text_begun_in_english_cannot_turn_english():
    cells = [("nothing", 1.0, 1.0), ("own", 0.5, 1.0), ("another's", 0.75, 1.0), ("random", 1.0, 1)]
    rows = [(code, *cell) for code in ("en", "de") for cell in cells]
    columns = ["begun", "off", "in_language", "in_english"]
    *_, english, german = findings.by_prompt(pd.DataFrame(rows, columns=columns)).splitlines()
    assert english == "| English | 100 % | 50 % | | 75 % | 100 % |"
    assert german == "| German | 100 % | 50 % | 100 % | 75 % | 100 % |"


def test_a_prompt_that_names_another_language_is_told_apart():
    rows = [
        (to, named, edit, rate, 10 * rate)
        for to, rates in (("de", (0.1, 0.9, 0.3, 0.5)), ("fr", (0.3, 0.7, 0.5, 0.1)))
        for named, edit, rate in zip(
            (float("nan"), "de", "fr", "es"), ("held", "held", "held", "held"), rates, strict=True
        )
    ]
    scores = pd.DataFrame(rows, columns=["to", "named", "edit", "rate", "bleu"])
    header, _, nothing, this, another = findings.by_edit(scores).splitlines()
    assert header == "| the prompt names | edit | German | French | mean |"
    assert nothing == "| no language | held | 10 (1.0) | 30 (3.0) | 20 (2.0) |"
    assert this == "| this one | held | 90 (9.0) | 50 (5.0) | 70 (7.0) |"
    # German was asked for in French and Spanish, French in German and Spanish.
    assert another == "| another | held | 40 (4.0) | 40 (4.0) | 40 (4.0) |"


def test_what_moves_is_that_of_sets_of_neurons_and_told_facts():
    numbers = {
        f"{what} moved{end}": value
        for what in ("concept", "language")
        for end, value in (("", -0.001), (" low", -0.1), (" high", 0.2))
    }
    keys = [
        ("told", "all-shared neurons", "source", "all"),
        ("held_out", "all-shared neurons", "source", "all"),
        ("told", "all-shared neurons", "another concept in s", "all"),
        ("told", "resid_post", "source", "3"),
    ]
    columns = ["facts", "part", "source", "layer"]
    rows = [dict(zip(columns, key, strict=True)) | numbers for key in keys]
    lines = findings.by_part(pd.DataFrame(rows).assign(verdict="cannot tell")).splitlines()
    assert len(lines) == 3
    assert lines[2] == (
        "| all-shared neurons | 0.00 (-0.10 to 0.20) | 0.00 (-0.10 to 0.20) | cannot tell |"
    )


def test_claims_that_do_not_hold_are_named():
    claims = load_claims(ROOT / "experiments/measured/gemma/deactivate_neurons.json")
    said = findings.verdicts(claims)
    for claim in claims:
        assert (f"- {claim.statement}" in said) == (claim.verdict != "holds")


def test_tables_of_a_study_that_ran_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    results = findings.Results("gemma")
    findings.keep(results, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    file = results.file("deactivate_neurons/writing")
    file.parent.mkdir(parents=True)
    file.write_text("begun,off\nde,own\n")
    findings.keep(results, tmp_path / "kept")
    copy = tmp_path / "kept" / "deactivate_neurons" / "writing.csv"
    assert copy.read_text() == file.read_text()


def test_ways_of_steering_have_their_texts_and_the_good_ones():
    rows = [("push", "de", 0.5, 0.25), ("push", "ja", 1.0, 0.75)]
    *_, line = findings.by_way(
        pd.DataFrame(rows, columns=["way", "to", "rate", "good"])
    ).splitlines()
    assert line == "| push | 50 (25) | 100 (75) | 75 (50) |"


def test_units_have_their_best_and_their_worst_language():
    rows = [(2000, "top", "de", 0.9, 0.3, 0.4), (2000, "top", "ja", 0.7, 0.2, 0.4)]
    rows += [(2000, "both", "de", 0.5, 0.3, 0.4)]
    columns = ["units", "set", "language", "precision", "outer_layers", "outer_by_chance"]
    *_, line = findings.by_units(pd.DataFrame(rows, columns=columns)).splitlines()
    assert line == "| 2,000, top | 0.800 | 0.900, German | 0.700, Japanese | 25 % (40 %) |"


def test_middle_layers_are_all_but_the_first_and_the_last_quarter():
    cells = {"en": [0.0, 0.6, 0.8, 0.1], "de": [1.0, 0.2, 0.0, 0.5]}
    rows = [
        ("de", layer, code, share)
        for code, shares in cells.items()
        for layer, share in enumerate(shares)
    ]
    top = pd.DataFrame(rows, columns=["asked_in", "layer", "language", "share"])
    *_, line = findings.by_layer(top).splitlines()
    assert line == "| German | 70 % | 10 % | 10 % | 50 % |"


def test_a_score_without_a_sign_has_no_direction():
    rows = [("gradient", "signed", 0.5), ("gradient", "size", 0.25), ("gradient", "hits", 0.75)]
    rows += [("size", "size", 0.5), ("size", "hits", 0.25)]
    *_, signed, unsigned = findings.by_score(
        pd.DataFrame(rows, columns=["score", "measure", "mean"])
    ).splitlines()
    assert signed == "| gradient | 0.50 | 0.25 | 0.75 |"
    assert unsigned == "| size | no sign | 0.50 | 0.25 |"


def test_a_reading_has_its_means_over_languages():
    rows = [("usual", "de", 9, 1.0, 4.0, 1.0, 0.5), ("usual", "ja", 7, 0.5, 5.0, 2.0, 1.0)]
    columns = ["reading", "language", "neurons", "jaccard", "loss", "increase", "own_minus_others"]
    *_, line = findings.by_reading(pd.DataFrame(rows, columns=columns)).splitlines()
    assert line == "| usual | 7 to 9 | 4.50 | 0.75 | 1.50 | 0.75 |"


def test_a_way_of_training_has_its_mean_over_seeds_and_the_interval_of_t():
    """Of three values a half apart: 4.303 standard errors, those of t with two degrees."""
    rows = [("neurons", 0.002, gain, 0.0) for gain in (0.5, 1.0, 1.5)]
    columns = ["way", "rate", "gain", "forgetting"]
    *_, line = findings.by_training(pd.DataFrame(rows, columns=columns)).splitlines()
    assert line == "| neurons | 0.002 | 1.00 (-0.24 to 2.24) | 0.00 (0.00 to 0.00) |"


def test_a_language_keeps_a_share_of_its_neurons_in_both_scripts():
    kept = [("ru", "script", 40, 0.25, 0.02), ("ru", "word order", 40, 0.9, 0.1)]
    kept += [("zh", "script", 30, 0.0, 0.01)]
    columns = ["language", "without", "neurons", "kept", "random"]
    moved = [("ru", "script", 0.125, 0.06, "de"), ("ru", "word order", 0.8, 0.1, "el")]
    moved += [("zh", "script", 0.0, 0.5, "ja")]
    off = [("ru", "all", "as it is", 2.0, 0.2), ("ru", "all", "romanised", 0.5, 0.1)]
    off += [("ru", "kept in both scripts", "romanised", 0.375, 0.06)]
    off += [("zh", "all", "as it is", 1.0, 0.2), ("zh", "all", "romanised", 0.25, 0.1)]
    russian, chinese = findings.by_script(
        pd.DataFrame(kept, columns=columns),
        pd.DataFrame(moved, columns=["language", "without", "jaccard", "elsewhere", "closest"]),
        pd.DataFrame(off, columns=["language", "off", "read", "increase", "rate_matched"]),
    ).splitlines()[2:]
    assert russian == (
        "| Russian | 40 | 0.12 | 0.06, German | 25 % (2 %) | 2.00 | 0.50 | 0.38 (0.06) |"
    )
    assert chinese == "| Chinese | 30 | 0.00 | 0.50, Japanese | 0 % (1 %) | 1.00 | 0.25 | |"


def test_topics_stand_beside_the_means_of_topics_and_of_languages():
    columns = ["labels", "label", "neurons", "own", "others", "alike_own", "entropy", "again"]
    rows = [
        ("languages", "de", 50, 1.0, 0.1, 0.2, 0.5, 0.75, 1.0),
        ("topics", "sports", 40, 0.25, 0.125, 0.0, 0.75, 0.5, 0.0),
        ("topics", "travel", 20, 0.75, 0.375, 0.5, 0.25, 0.25, 0.5),
    ]
    *_, sports, travel, topics, languages = findings.by_label(
        pd.DataFrame(rows, columns=[*columns, "also_languages"])
    ).splitlines()
    assert sports == "| sports | 40 | 0.25 | 0.12 | 0.00 | 0.75 | 0.50 | 0.00 |"
    assert travel.startswith("| travel | 20 | 0.75 |")
    assert topics == "| mean of topics | 20 to 40 | 0.50 | 0.25 | 0.25 | 0.50 | 0.38 | 0.25 |"
    assert languages == "| mean of languages | 50 | 1.00 | 0.10 | 0.20 | 0.50 | 0.75 | 1.00 |"


def test_neurons_off_at_every_token_have_a_column_of_their_own():
    rows = [
        ("all", off, size, n, accuracy, where)
        for where, fall in (("all", 0.4), ("last", 0.1))
        for off, size, n, accuracy in (
            ("nothing", float("nan"), 0, 0.9),
            ("all shared", "equal", 1200, 0.9 - fall),
            ("all shared", "all shared", 3000, 0.0),  # not as many as the others
        )
    ]
    columns = ["language", "off", "size", "neurons", "accuracy", "where"]
    off = pd.DataFrame([*rows, ("de", "nothing", float("nan"), 0, 0.2, "last")], columns=columns)
    header, _, nothing, shared = findings.by_category({"facts": off}).splitlines()
    last, everywhere = (f"facts, 1,200 neurons at {at}" for at in ("the last token", "every token"))
    assert header == f"| off | {last} | {everywhere} |"
    assert nothing == "| nothing | 90 % | 90 % |"
    assert shared == "| all shared | 80 % | 50 % |"
