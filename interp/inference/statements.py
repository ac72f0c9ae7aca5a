"""What is claimed, in files that are committed before anything is measured, joined by name with
what was measured."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from interp.inference.claims import Claim, Side
from interp.inference.crossed import unpaired_difference
from interp.inference.intervals import Estimate

COUNTED = "nothing: counted"
"""What the interval is over of a number that was counted on everything there is."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A claim and the rule that decides it, before anything is measured.

    Texts may contain {words} that are known only with the measurement, such as a number of layers.
    """

    name: str
    """Name of the claim and of its measurement."""

    says: str
    """What is claimed, in one sentence."""

    source: str
    """Who claims it."""

    measures: str
    """What is measured, with its unit."""

    holds: str
    """"above 0", "below 0.05", "within 0.05" (of zero), or "above control": that is the bar."""

    over: str
    """What the interval is over, such as "documents" or "languages"; `COUNTED` if everything there
    is was counted. A number without an interval is accepted only there."""

    control: str = ""
    """What the control is, where the claim should not hold. The claim holds only beyond it."""

    no_control: str = ""
    """Why there is no control, such as "random neurons are subtracted"."""

    command: str = ""
    """Command that measures it."""

    on: str = ""
    """What it is tested on, if that is always the same."""

    def __post_init__(self) -> None:
        self.bar_for(0.0)  # an unreadable rule is refused before anything is measured
        if bool(self.control) == bool(self.no_control):
            raise ValueError(
                f"{self.name}: name a control that the number must be beyond, or say in no_control "
                "why there is none."
            )

    @property
    def side(self) -> Side:
        """Side of the bar on which the claim holds."""
        side = self.holds.partition(" ")[0]
        return "below" if side == "below" else "within" if side == "within" else "above"

    def bar_for(self, control: float) -> float:
        """The bar, if the control gives this number."""
        side, _, bar = self.holds.partition(" ")
        try:
            if side not in ("above", "below", "within") or (side == "within" and float(bar) <= 0):
                raise ValueError(side)
            return control if bar == "control" else float(bar)
        except ValueError:
            raise ValueError(
                f"{self.name}: holds = {self.holds!r} is not a rule: write above, below or within, "
                'and a number or "control", such as "above 0".'
            ) from None


@dataclass(frozen=True)
class Measurement:
    """The number that a statement is about, and that of its control."""

    value: Estimate | float
    """With its interval; a plain number was counted on everything there is."""

    control: Estimate | float = math.nan
    """A plain number is known without error. NaN: the statement has no control."""

    difference: Estimate | None = None
    """The value minus the control, paired on the items that both were measured on. None: they were
    measured on different items, or the control is known without error."""

    words: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Values of the {words} in the statement."""


def read_statements(path: Path | str) -> tuple[Statement, ...]:
    """The statements of a TOML file, in its order: one table each, named after the claim.

    A source, command or unit above the first table applies to all statements without their own.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is missing: write a TOML file with one table per statement."
        )
    stored = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    common = {key: value for key, value in stored.items() if not isinstance(value, dict)}
    try:
        return tuple(
            Statement(**(common | table), name=name)
            for name, table in stored.items()
            if isinstance(table, dict)
        )
    except TypeError as error:
        keys = ", ".join(key.name for key in fields(Statement) if key.name != "name")
        raise ValueError(f"{path}: {error}. A statement has {keys}.") from None


def judged(
    statements: Sequence[Statement],
    measured: Mapping[str, Measurement | None],
    on: str,
    name: str = "{claim}",
    **words: str,
) -> list[Claim]:
    """A claim for each statement, in order, with the number measured under its name.

    Every statement needs a measurement and every measurement a statement. None: it cannot be
    measured here (too few languages, no text), and there is no claim. `name` is a template for the
    claims' names if the same statements are tested several times, such as "{claim}-xnli"; `words`
    fill the texts of all.
    """
    names = [statement.name for statement in statements]
    missing = [stated for stated in names if stated not in measured]
    unknown = [known for known in measured if known not in names]
    if missing or unknown:
        raise ValueError(
            "Statements and measurements do not match: "
            f"{', '.join(missing) or 'none'} not measured, {', '.join(unknown) or 'none'} not "
            "stated. State every claim before it is measured; give None if it cannot be measured."
        )
    return [
        _judged(statement, measurement, on, name, words)
        for statement in statements
        if (measurement := measured[statement.name]) is not None
    ]


def _judged(
    statement: Statement, measurement: Measurement, on: str, name: str, common: Mapping[str, str]
) -> Claim:
    words = {**common, **measurement.words}
    control = _number(measurement.control)
    _check_measurement(statement, measurement, control)
    try:
        other_fields: dict[str, Any] = {
            "statement": statement.says.format_map(words),
            "how": statement.measures.format_map(words),
            "control_name": (statement.control or statement.no_control).format_map(words),
        }
    except KeyError as error:
        raise ValueError(
            f"{statement.name}: no value is given for {error}, only for {list(words)}."
        ) from None
    other_fields |= {"name": name.format(claim=statement.name), "stated_as": statement.name}
    other_fields["on"] = statement.on or on
    other_fields |= {"source": statement.source, "command": statement.command, "control": control}
    other_fields |= {"side": statement.side, "bar": statement.bar_for(control)}
    other_fields |= _difference(measurement)
    if isinstance(measurement.value, Estimate):
        return claim_of(measurement.value, over=statement.over, **other_fields)
    return counted(measurement.value, **other_fields)


def _check_measurement(statement: Statement, measurement: Measurement, control: float) -> None:
    if not statement.control and not math.isnan(control):
        raise ValueError(
            f"{statement.name} names no control, but {control} was measured as one: name it."
        )
    if statement.control and math.isnan(control):
        raise ValueError(
            f"{statement.name} is decided by its control, {statement.control}, which was not "
            "measured: give its number, or None for the whole measurement."
        )
    if isinstance(measurement.value, Estimate) == (statement.over == COUNTED):
        raise ValueError(
            f"{statement.name} is over {statement.over!r}, but was measured as "
            f"{measurement.value}: what was sampled needs an interval, what was counted has none."
        )


def _difference(measurement: Measurement) -> dict[str, float]:
    """Value minus control with its interval; nothing if the control is known without error."""
    value, control, more = measurement.value, measurement.control, measurement.difference
    if more is None:
        if not (isinstance(value, Estimate) and isinstance(control, Estimate)):
            return {}
        more = unpaired_difference(value, control)
    low, middle, high = (float(x) for x in (more.low, more.value, more.high))
    ends = {"difference_low": min(low, middle), "difference_high": max(high, middle)}
    return {"difference": middle, **ends}


def _number(value: Estimate | float) -> float:
    return value.value.item() if isinstance(value, Estimate) else value


def claim_of(estimate: Estimate, **other_fields: Any) -> Claim:
    """A claim about one number with an interval; the other fields are those of `Claim`."""
    if estimate.value.numel() != 1:
        raise ValueError(
            f"A claim is about one number, and the estimate has shape "
            f"{tuple(estimate.value.shape)}: take its mean or minimum first."
        )
    value, low, high = map(float, (estimate.value, estimate.low, estimate.high))
    freedom = estimate.degrees_of_freedom
    # A resampled interval may exclude the value, if only by rounding: widen it to include it.
    return Claim(
        **other_fields,
        value=value,
        low=min(low, value),
        high=max(high, value),
        degrees_of_freedom=math.nan if math.isinf(freedom) else freedom,
    )


def counted(value: float, **other_fields: Any) -> Claim:
    """A claim about what was counted on everything there is: the interval has no width."""
    return Claim(**other_fields, value=value, low=value, high=value)
