import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.inference.claims import (
    Claim,
    Measurement,
    Statement,
    claim_of,
    counted,
    in_short,
    judged,
    load_claims,
    markdown,
    read_statements,
    save_claims,
    scoreboard,
    tally,
)
from interp.inference.intervals import Estimate

CLAIM = Claim(
    name="diagonal",
    statement="A language's neurons matter most to that language.",
    source="Somebody (2024)",
    on="a made-up model",
    how="own language minus others, nats per token",
    command="python -m nothing",
    value=0.2,
    low=0.1,
    high=0.3,
    control=0.01,
    control_name="random neurons",
)


@pytest.mark.parametrize(
    ("low", "high", "bar", "side", "verdict"),
    [
        (0.1, 0.3, 0.0, "above", "holds"),
        (0.1, 0.3, 0.1, "above", "cannot tell"),
        (0.1, 0.3, 0.2, "above", "cannot tell"),
        (0.1, 0.3, 0.3, "above", "does not hold"),
        (0.1, 0.3, 0.5, "above", "does not hold"),
        (0.1, 0.3, 0.5, "below", "holds"),
        (0.1, 0.3, 0.3, "below", "cannot tell"),
        (0.1, 0.3, 0.1, "below", "does not hold"),
        (0.2, 0.2, 0.2, "above", "does not hold"),
        (0.2, 0.2, 0.19, "above", "holds"),
    ],
)
def test_the_interval_alone_decides(low: float, high: float, bar: float, side, verdict: str):
    assert replace(CLAIM, low=low, high=high, bar=bar, side=side).verdict == verdict


@given(st.floats(-9, 9), st.floats(0, 3), st.floats(0, 3), st.floats(-9, 9))
def test_a_claim_and_its_contrary_never_both_hold(value: float, down: float, up: float, bar: float):
    claim = replace(CLAIM, value=value, low=value - down, high=value + up, bar=bar)
    contrary = replace(claim, side="below")
    assert {claim.verdict, contrary.verdict} != {"holds"}
    if claim.verdict == "holds":
        assert contrary.verdict == "does not hold"


def test_what_was_not_measured_cannot_be_told():
    gone = replace(CLAIM, value=math.nan, low=math.nan, high=math.nan)
    assert gone.verdict == "cannot tell"
    assert replace(gone, side="below").verdict == "cannot tell"


def test_an_estimate_becomes_a_claim():
    number = torch.tensor(0.2, dtype=torch.float64)
    estimate = Estimate(number, number / 10, number - 0.1, number + 0.1, 0.95)
    said = {
        name: getattr(CLAIM, name)
        for name in ("name", "statement", "source", "on", "how", "command")
    }
    made = claim_of(estimate, **said)
    assert (made.value, made.low, made.high) == pytest.approx((0.2, 0.1, 0.3))
    sure = counted(0.2, bar=0.2, **said)
    assert (sure.low, sure.high, sure.verdict) == (0.2, 0.2, "does not hold")
    many = Estimate(*(number.expand(2) for _ in range(4)), 0.95)
    with pytest.raises(ValueError, match=r"about one number, and the estimate has shape \(2,\)"):
        claim_of(many, **said)


def test_claims_are_read_as_they_were_written(tmp_path: Path):
    path = tmp_path / "claims.json"
    claims = (CLAIM, replace(CLAIM, name="other", control=math.nan, control_name=""))
    save_claims(claims, path)
    first, second = load_claims(path)
    assert first == CLAIM
    assert math.isnan(second.control)
    assert "verdict" not in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="diagonal is the name of several claims"):
        save_claims([CLAIM, CLAIM], path)
    assert load_claims(path)[0] == CLAIM


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other", "claims": []}', '{"claims": 1}'])
def test_other_files_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "claims.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no claims that can be read"):
        load_claims(path)
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_claims(tmp_path / "none.json")


def test_wrong_numbers_are_refused(tmp_path: Path):
    path = tmp_path / "claims.json"
    save_claims([CLAIM], path)
    path.write_text(path.read_text(encoding="utf-8").replace('"above"', '"over"'))
    with pytest.raises(ValueError, match="holds no claims that can be read"):
        load_claims(path)
    with pytest.raises(ValueError, match=r"0\.5 is not within its interval, 0\.1 to 0\.3"):
        replace(CLAIM, value=0.5)


def test_tables_show_number_interval_control_and_verdict():
    frame = scoreboard([CLAIM, replace(CLAIM, name="b", bar=0.5)])
    assert frame["verdict"].tolist() == ["holds", "does not hold"]
    assert frame["rule"].tolist()[1] == "holds if the whole interval is above 0.5"
    shown = markdown([replace(CLAIM, statement="a | b")])
    row = shown.splitlines()[2]
    assert r"a \| b" in row
    assert "0.2 (0.1 to 0.3)" in row
    assert "0.01 random neurons" in row
    assert row.endswith("**holds** |")
    exact = markdown([replace(CLAIM, low=0.2, high=0.2, control=math.nan, control_name="")])
    assert "0.2; holds if" in exact
    assert scoreboard([]).empty
    assert json.loads(frame.to_json())


def test_a_row_of_the_table_is_one_line_whatever_is_in_it():
    shown = markdown([replace(CLAIM, statement="a\n| b", value=math.nan, low=math.nan)])
    assert len(shown.splitlines()) == 3
    assert r"a \| b *Somebody" in shown
    assert "nats per token: unknown; holds if" in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.123"),
        (-0.00734, "-0.00734"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (999.9, "1,000"),
        (-20480.0, "-20,480"),
        (0.0, "0"),
        (math.nan, "unknown"),
    ],
)
def test_numbers_are_told_in_short(value: float, text: str):
    assert in_short(value) == text


def test_claims_are_tallied_by_verdict():
    no, unsure = replace(CLAIM, bar=0.5), replace(CLAIM, bar=0.2)
    assert tally([]) == "0 claims"
    assert tally([CLAIM]) == "1 claim: 1 holds"
    assert tally([CLAIM, no, CLAIM]) == "3 claims: 2 hold, 1 does not"
    assert tally([unsure, no, no]) == "3 claims: 2 do not, 1 undecided"


# ---------------------------------------------------------------- stated, then measured

STATED = """
source = "Somebody (2024)"
command = "python -m nothing"

[near]
says = "Relatives of {code} share."
measures = "share of {n}"
holds = "above control"
control = "by chance"

[few]
says = "There are few."
source = "this project"
measures = "number"
holds = "below 0.5"
on = "somewhere else"
"""


def statements(folder: Path, text: str = STATED) -> tuple[Statement, ...]:
    path = folder / "claims.toml"
    path.write_text(text)
    return read_statements(path)


def test_what_is_stated_is_joined_with_what_is_measured_by_name(tmp_path: Path):
    near = Measurement(claim_estimate(0.4, 0.3, 0.5), 0.35, words={"n": "7"})
    measured = {"few": Measurement(1.0), "near": near}  # the order is that of the file
    first, second = judged(statements(tmp_path), measured, "here", "{claim}-2", code="de")
    assert (first.name, first.on, first.how) == ("near-2", "here", "share of 7")
    assert first.statement == "Relatives of de share."
    assert (first.value, first.low, first.high) == (0.4, 0.3, 0.5)
    assert (first.bar, first.control, first.control_name) == (0.35, 0.35, "by chance")
    assert first.verdict == "cannot tell"  # not beyond the control
    assert (first.source, second.source) == ("Somebody (2024)", "this project")
    assert (second.on, second.side, second.low, second.verdict) == (
        "somewhere else",
        "below",
        1.0,
        "does not hold",
    )


def test_a_measurement_that_is_none_makes_no_claim_and_a_control_that_is_unknown_has_no_name(
    tmp_path: Path,
):
    text = STATED.replace("above control", "above 0")
    near = Measurement(1.0, words={"n": "7"})
    (only,) = judged(statements(tmp_path, text), {"near": near, "few": None}, "here", code="de")
    assert only.name == "near"
    assert math.isnan(only.control)
    assert only.control_name == ""


def test_a_statement_without_measurement_and_the_reverse_are_refused_by_name(tmp_path: Path):
    found = statements(tmp_path)
    with pytest.raises(ValueError, match=r"near not measured, far not stated\. State every claim"):
        judged(found, {"few": Measurement(0.0), "far": Measurement(0.0)}, "here")
    with pytest.raises(ValueError, match="near not measured, none not stated"):
        judged(found, {"few": None}, "here")


def test_statements_that_cannot_be_judged_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="near: holds = 'over 0' is not a rule: write above or"):
        statements(tmp_path, STATED.replace("above control", "over 0"))
    with pytest.raises(ValueError, match="few: holds = 'below all' is not a rule"):
        statements(tmp_path, STATED.replace("below 0.5", "below all"))
    with pytest.raises(ValueError, match=r"claims\.toml: .*'bar'.*A statement has says, source"):
        statements(tmp_path, STATED + "bar = 1\n")
    with pytest.raises(FileNotFoundError, match="is missing: write a TOML file"):
        read_statements(tmp_path / "none.toml")
    found = statements(tmp_path)
    with pytest.raises(ValueError, match="near: no value is given for 'code'"):
        judged(found, {"few": None, "near": Measurement(1.0, 0.0, words={"n": "7"})}, "here")
    with pytest.raises(
        ValueError, match=r"few names no control, but 0\.2 was measured as one: name it"
    ):
        judged(found, {"few": Measurement(1.0, 0.2), "near": None}, "here")


def claim_estimate(value: float, low: float, high: float) -> Estimate:
    numbers = {"value": value, "standard_error": 0.0, "low": low, "high": high}
    tensors = {name: torch.tensor(each, dtype=torch.float64) for name, each in numbers.items()}
    return Estimate(**tensors, level=0.95)
