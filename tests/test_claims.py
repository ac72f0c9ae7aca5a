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
    in_short,
    load_claims,
    markdown,
    save_claims,
    scoreboard,
    tally,
)
from interp.inference.intervals import Estimate
from interp.inference.statements import (
    Measurement,
    Statement,
    claim_of,
    counted,
    judged,
    read_statements,
)

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
        (0.1, 0.3, 0.31, "within", "holds"),
        (0.1, 0.3, 0.3, "within", "cannot tell"),
        (0.1, 0.3, 0.2, "within", "cannot tell"),
        (0.1, 0.3, 0.1, "within", "does not hold"),
    ],
)
def test_without_a_control_the_interval_alone_decides(
    low: float, high: float, bar: float, side, verdict: str
):
    alone = replace(CLAIM, control=math.nan)
    assert replace(alone, low=low, high=high, bar=bar, side=side).verdict == verdict
    if side == "within":
        mirrored = replace(alone, value=-0.2, low=-high, high=-low, bar=bar, side=side)
        assert mirrored.verdict == verdict


@pytest.mark.parametrize(
    ("side", "bar", "difference", "verdict"),
    [
        ("above", 0.0, (0.01, 0.2), "holds"),
        ("above", 0.0, (0.0, 0.2), "no more than its control"),
        ("above", 0.0, (-0.2, 0.2), "no more than its control"),
        ("above", 0.0, (-0.3, -0.1), "no more than its control"),  # the control is larger
        ("above", 0.2, (0.01, 0.2), "cannot tell"),
        ("above", 0.3, (0.01, 0.2), "does not hold"),
        ("below", 0.5, (-0.2, -0.01), "holds"),
        ("below", 0.5, (0.01, 0.2), "no more than its control"),
        ("within", 0.5, (-0.2, -0.01), "holds"),
        ("within", 0.5, (0.01, 0.2), "holds"),
        ("within", 0.5, (-0.01, 0.2), "no more than its control"),
    ],
)
def test_a_claim_holds_only_beyond_its_bar_and_its_control(
    side, bar: float, difference: tuple[float, float], verdict: str
):
    low, high = difference
    ends = {"difference_low": low, "difference_high": high, "difference": (low + high) / 2}
    claim = replace(CLAIM, side=side, bar=bar, **ends)
    assert claim.verdict == verdict
    assert (claim.p_value < 0.05) == (verdict == "holds")


def test_a_control_that_is_known_without_error_is_compared_with_the_interval_of_the_value():
    assert replace(CLAIM, control=0.09).verdict == "holds"
    assert replace(CLAIM, control=0.1).verdict == "no more than its control"
    assert CLAIM.from_control == pytest.approx((0.19, 0.09, 0.29))
    assert "and its control" in CLAIM.rule
    assert "control" not in replace(CLAIM, bar=0.01).rule  # the control is the bar


@pytest.mark.parametrize("freedom", [math.nan, 5.0])
@pytest.mark.parametrize("side", ["above", "below", "within"])
@pytest.mark.parametrize("high", [0.3, 0.6])  # 0.6: the value is nearer to the lower end
def test_p_is_below_five_percent_where_the_claim_holds_and_nowhere_else(
    high: float, side, freedom: float
):
    ends = (0.0999, 0.1001, high - 0.0001, high + 0.0001)
    for bar in (-0.5, 0.2, 0.9, *ends):
        changes = {"high": high, "control": math.nan, "degrees_of_freedom": freedom}
        alone = replace(CLAIM, side=side, bar=bar, **changes)
        assert (alone.p_value < 0.05) == (alone.verdict == "holds"), bar
        for control in (0.2, *ends):
            claim = replace(alone, control=control)
            assert (claim.p_value < 0.05) == (claim.verdict == "holds"), (bar, control)


def test_p_is_that_of_the_distribution_that_the_interval_has():
    half = 1.959963984540054
    normal = replace(CLAIM, value=3.0, low=3 - half, high=3 + half, control=math.nan)
    assert normal.p_value == pytest.approx(0.0026997960632601866)
    of_t = {"low": 3 - 2.5705818366147395, "high": 3 + 2.5705818366147395}
    assert replace(normal, **of_t, degrees_of_freedom=5.0).p_value == pytest.approx(0.0300992479)
    assert math.isnan(replace(normal, low=3.0, high=3.0).p_value)  # nothing was sampled


def test_false_discoveries_are_controlled_over_all_claims_of_the_table():
    def at(p: float) -> Claim:
        z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - p / 2).double()).item()
        half = 1.959963984540054 / z
        return replace(CLAIM, value=1.0, low=1 - half, high=1 + half, control=math.nan)

    claims = [at(0.01), at(0.04), replace(CLAIM, low=0.2, high=0.2), at(0.03)]
    found = scoreboard(claims)
    assert found["p_value"].tolist() == pytest.approx([0.01, 0.04, math.nan, 0.03], nan_ok=True)
    assert found["q_value"].tolist() == pytest.approx([0.03, 0.04, math.nan, 0.04], nan_ok=True)
    rows = markdown(claims).splitlines()
    assert rows[2].endswith("**holds**, q 0.03 |")
    assert rows[4].endswith("**holds** |")


@given(st.floats(-9, 9), st.floats(0, 3), st.floats(0, 3), st.floats(-9, 9))
def test_a_claim_and_its_contrary_never_both_hold(value: float, down: float, up: float, bar: float):
    claim = replace(CLAIM, value=value, low=value - down, high=value + up, bar=bar)
    contrary = replace(claim, side="below")
    assert {claim.verdict, contrary.verdict} != {"holds"}
    if claim.verdict in ("holds", "no more than its control"):
        assert contrary.verdict == "does not hold"


def test_what_was_not_measured_cannot_be_told():
    gone = replace(CLAIM, value=math.nan, low=math.nan, high=math.nan)
    assert gone.verdict == "cannot tell"
    assert replace(gone, side="below").verdict == "cannot tell"


def test_an_estimate_becomes_a_claim():
    number = torch.tensor(0.2, dtype=torch.float64)
    estimate = Estimate(number, number / 10, number - 0.1, number + 0.1, 0.95, 7.0)
    said = {
        name: getattr(CLAIM, name)
        for name in ("name", "statement", "source", "on", "how", "command")
    }
    made = claim_of(estimate, **said)
    assert (made.value, made.low, made.high) == pytest.approx((0.2, 0.1, 0.3))
    assert made.degrees_of_freedom == 7
    above = claim_of(Estimate(number, number, number + 0.1, number + 0.2, 0.95), **said)
    assert (above.low, above.high) == pytest.approx((0.2, 0.4))
    below = claim_of(Estimate(number, number, number - 0.2, number - 0.1, 0.95), **said)
    assert (below.low, below.high) == pytest.approx((0.0, 0.2))
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
    assert frame["rule"].tolist()[1] == "holds if the whole interval is above 0.5 and its control"
    shown = markdown([replace(CLAIM, statement="a | b")])
    row = shown.splitlines()[2]
    assert r"a \| b" in row
    assert "0.2 (0.1 to 0.3)" in row
    assert "0.01 random neurons" in row
    assert row.endswith("**holds**, q 0.000196 |")
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
    no_more = replace(CLAIM, control=0.2)
    assert tally([no_more, CLAIM]) == "2 claims: 1 holds, 1 is no more than its control"
    assert tally([no_more, no_more]) == "2 claims: 2 are no more than their control"


# ---------------------------------------------------------------- stated, then measured

STATED = """
source = "Somebody (2024)"
command = "python -m nothing"
over = "documents"

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
over = "nothing: counted"
no_control = "there is nothing else"
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
    assert (first.over, second.over) == ("documents", "")
    assert first.verdict == "cannot tell"  # not beyond the control
    assert (first.source, second.source) == ("Somebody (2024)", "this project")
    assert (second.on, second.side, second.low, second.verdict) == (
        "somewhere else",
        "below",
        1.0,
        "does not hold",
    )


def test_a_measurement_that_is_none_makes_no_claim(tmp_path: Path):
    measured = {"near": None, "few": Measurement(1.0)}
    (only,) = judged(statements(tmp_path), measured, "here", code="de")
    assert only.name == "few"
    assert math.isnan(only.control)
    assert only.control_name == "there is nothing else"


def test_a_control_is_compared_by_the_pairs_or_else_by_both_intervals(tmp_path: Path):
    value, control = claim_estimate(0.4, 0.3, 0.5), claim_estimate(0.1, 0.0, 0.2)
    text = STATED.replace("above control", "above 0")

    def near(difference: Estimate | None) -> Claim:
        measured = {"near": Measurement(value, control, difference, words={"n": "7"}), "few": None}
        return judged(statements(tmp_path, text), measured, "here", code="de")[0]

    paired = near(claim_estimate(0.3, -0.1, 0.7))
    assert paired.from_control == (0.3, -0.1, 0.7)
    assert paired.verdict == "no more than its control"
    apart = near(None)
    assert apart.from_control == pytest.approx((0.3, 0.3 - 0.02**0.5, 0.3 + 0.02**0.5))
    assert apart.verdict == "holds"
    assert "difference 0.3 (0.159 to 0.441)" in markdown([apart])
    assert "(0.3 to 0.5 over documents)" in markdown([apart])


def test_a_statement_without_measurement_and_the_reverse_are_refused_by_name(tmp_path: Path):
    found = statements(tmp_path)
    with pytest.raises(ValueError, match=r"near not measured, far not stated\. State every claim"):
        judged(found, {"few": Measurement(0.0), "far": Measurement(0.0)}, "here")
    with pytest.raises(ValueError, match="near not measured, none not stated"):
        judged(found, {"few": None}, "here")


def test_statements_that_cannot_be_judged_are_refused(tmp_path: Path):
    with pytest.raises(
        ValueError, match="near: holds = 'over 0' is not a rule: write above, below or"
    ):
        statements(tmp_path, STATED.replace("above control", "over 0"))
    with pytest.raises(ValueError, match="few: holds = 'below all' is not a rule"):
        statements(tmp_path, STATED.replace("below 0.5", "below all"))
    with pytest.raises(ValueError, match=r"claims\.toml: .*'bar'.*A statement has says, source"):
        statements(tmp_path, STATED + "bar = 1\n")
    with pytest.raises(ValueError, match="few: holds = 'within -1' is not a rule"):
        statements(tmp_path, STATED.replace("below 0.5", "within -1"))
    with pytest.raises(ValueError, match="few: name a control that the number must be"):
        statements(tmp_path, STATED.replace("no_control = ", "command = "))
    with pytest.raises(ValueError, match="near: name a control"):
        statements(tmp_path, STATED.replace("[near]", '[near]\nno_control = "none"'))
    with pytest.raises(ValueError, match="missing a required argument: 'over'"):
        statements(tmp_path, STATED.replace('over = "documents"', ""))
    with pytest.raises(FileNotFoundError, match="is missing: write a TOML file"):
        read_statements(tmp_path / "none.toml")
    found, whole = statements(tmp_path), claim_estimate(1.0, 0.5, 1.5)
    with pytest.raises(ValueError, match="near: no value is given for 'code'"):
        judged(found, {"few": None, "near": Measurement(whole, 0.0, words={"n": "7"})}, "here")
    with pytest.raises(
        ValueError, match=r"few names no control, but 0\.2 was measured as one: name it"
    ):
        judged(found, {"few": Measurement(1.0, 0.2), "near": None}, "here")


def test_what_was_sampled_needs_an_interval_and_a_stated_control_a_number(tmp_path: Path):
    found, whole = statements(tmp_path), claim_estimate(1.0, 0.5, 1.5)
    with pytest.raises(ValueError, match="near is over 'documents', but was measured as"):
        judged(found, {"few": None, "near": Measurement(1.0, 0.5)}, "here")
    with pytest.raises(ValueError, match="few is over 'nothing: counted', but was measured as 1 "):
        judged(found, {"few": Measurement(whole), "near": None}, "here")
    with pytest.raises(ValueError, match="near is decided by its control, by chance, which was no"):
        judged(found, {"few": None, "near": Measurement(whole)}, "here")


def claim_estimate(value: float, low: float, high: float) -> Estimate:
    numbers = {"value": value, "standard_error": 0.0, "low": low, "high": high}
    tensors = {name: torch.tensor(each, dtype=torch.float64) for name, each in numbers.items()}
    return Estimate(**tensors, level=0.95)
