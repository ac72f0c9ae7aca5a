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
    claim_of,
    counted,
    in_short,
    load_claims,
    markdown,
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
    assert tally([unsure, no, no]) == "3 claims: 2 do not, 1 cannot be told"
