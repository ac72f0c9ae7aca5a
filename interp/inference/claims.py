"""Published claims, what was measured, and a verdict by a rule that was stated beforehand.

A claim is a number and a bar. It holds if the number's whole interval is beyond the bar, it does
not hold if the whole interval is not, and otherwise the data do not decide. Nothing else counts, so
a verdict changes only with the measurement. Statements and rules can be data, in a file that is
committed before anything is measured: `read_statements` and `judged`.
"""

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from interp.inference.intervals import Estimate
from interp.results import artifacts
from interp.results.display import Cells, Shown

Side = Literal["above", "below"]
Verdict = Literal["holds", "does not hold", "cannot tell"]

FORMAT = "polyneuron Claims 1"


@dataclass(frozen=True)
class Claim(Shown):
    """A statement of a paper, and what was measured here.

    >>> about = ("The loss rises most in its own language.", "Tang et al. (2024)", "babel")
    >>> how = ("nats more than elsewhere", "python -m experiments.compare_methods")
    >>> claim = interp.inference.Claim("own-language", *about, *how, value=0.4, low=0.1, high=0.7)
    >>> claim.verdict, claim.rule
    ('holds', 'holds if the whole interval is above 0')
    """

    name: str
    """A short name, such as `lape-diagonal`."""

    statement: str
    """What is claimed, in one sentence."""

    source: str
    """Who claims it, such as "Tang et al. (2024)"."""

    on: str
    """What it was tested on: a model, or published files."""

    how: str
    """What was measured, with its unit."""

    command: str
    """Command that repeats the measurement."""

    value: float
    """The measured number."""

    low: float
    """Lower end of its 95 % interval; the value itself if it was counted without error."""

    high: float
    """Upper end."""

    bar: float = 0.0
    """What the interval is compared with."""

    side: Side = "above"
    """Side of the bar on which the claim holds."""

    control: float = math.nan
    """The same number where the claim should not hold, such as for random neurons. NaN: none."""

    control_name: str = ""
    """What the control is."""

    def __post_init__(self) -> None:
        if self.side not in ("above", "below"):
            raise ValueError(f"{self.name}: the side is above or below, not {self.side!r}.")
        if self.low > self.value or self.value > self.high:
            raise ValueError(
                f"{self.name}: {self.value} is not within its interval, {self.low} to {self.high}."
            )

    def __repr__(self) -> str:
        measured = f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"
        return f"Claim({self.name}: {self.statement} {measured}: {self.verdict})"

    def _cells(self) -> Cells:
        control = "" if math.isnan(self.control) else f"{self.control:.4g} {self.control_name}"
        measured = f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"
        rows = [[self.how, measured, self.rule, control, self.verdict]]
        return Cells(("measured", "value", "rule", "control", "verdict"), rows)

    @property
    def verdict(self) -> Verdict:
        """Decided by the interval alone. At the bar itself: does not hold. NaN: cannot tell."""
        low, high, bar = self.low, self.high, self.bar
        if self.side == "below":
            low, high, bar = -high, -low, -bar
        if low > bar:
            return "holds"
        return "does not hold" if high <= bar else "cannot tell"

    @property
    def rule(self) -> str:
        """The rule in words."""
        return f"holds if the whole interval is {self.side} {self.bar:.4g}"


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
    """"above 0", "below 0.05", or "above control": beyond the control's number."""

    control: str = ""
    """What the control is, where the claim should not hold; empty: no control."""

    command: str = ""
    """Command that measures it."""

    on: str = ""
    """What it is tested on, if that is always the same."""

    def __post_init__(self) -> None:
        self.bar_for(0.0)  # an unreadable rule is refused before anything is measured

    @property
    def side(self) -> Side:
        """Side of the bar on which the claim holds."""
        return "below" if self.holds.startswith("below ") else "above"

    def bar_for(self, control: float) -> float:
        """The bar, if the control gives this number."""
        side, _, bar = self.holds.partition(" ")
        try:
            if side not in ("above", "below"):
                raise ValueError(side)
            return control if bar == "control" else float(bar)
        except ValueError:
            raise ValueError(
                f"{self.name}: holds = {self.holds!r} is not a rule: write above or below, and a "
                'number or "control", such as "above 0".'
            ) from None


@dataclass(frozen=True)
class Measurement:
    """The number that a statement is about, and that of its control."""

    value: Estimate | float
    """With its interval; a plain number was counted without error."""

    control: float = math.nan
    """NaN: it cannot be measured here."""

    words: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Values of the {words} in the statement."""


def read_statements(path: Path | str) -> tuple[Statement, ...]:
    """The statements of a TOML file, in its order: one table each, named after the claim.

    A source or command above the first table applies to all statements without their own.
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
    control, has_control = measurement.control, not math.isnan(measurement.control)
    if has_control and not statement.control:
        raise ValueError(
            f"{statement.name} names no control, but {control} was measured as one: name it."
        )
    try:
        other_fields: dict[str, Any] = {
            "statement": statement.says.format_map(words),
            "how": statement.measures.format_map(words),
            "control_name": statement.control.format_map(words) if has_control else "",
        }
    except KeyError as error:
        raise ValueError(
            f"{statement.name}: no value is given for {error}, only for {list(words)}."
        ) from None
    other_fields |= {"name": name.format(claim=statement.name), "on": statement.on or on}
    other_fields |= {"source": statement.source, "command": statement.command, "control": control}
    other_fields |= {"side": statement.side, "bar": statement.bar_for(control)}
    if isinstance(measurement.value, Estimate):
        return claim_of(measurement.value, **other_fields)
    return counted(measurement.value, **other_fields)


def claim_of(estimate: Estimate, **other_fields: Any) -> Claim:
    """A claim about one number with an interval; the other fields are those of `Claim`."""
    if estimate.value.numel() != 1:
        raise ValueError(
            f"A claim is about one number, and the estimate has shape "
            f"{tuple(estimate.value.shape)}: take its mean or minimum first."
        )
    value, low, high = map(float, (estimate.value, estimate.low, estimate.high))
    # A resampled interval may exclude the value, if only by rounding: widen it to include it.
    return Claim(**other_fields, value=value, low=min(low, value), high=max(high, value))


def counted(value: float, **other_fields: Any) -> Claim:
    """A claim about something counted without error: the interval has zero width."""
    return Claim(**other_fields, value=value, low=value, high=value)


def scoreboard(claims: Iterable[Claim]) -> pd.DataFrame:
    """One row per claim, in order.

    >>> about = ("The loss rises.", "Tang et al. (2024)", "babel", "nats", "make reproduce")
    >>> sure = interp.inference.Claim("sure", *about, value=0.4, low=0.1, high=0.7)
    >>> unsure = interp.inference.Claim("unsure", *about, value=0.2, low=-0.1, high=0.5)
    >>> interp.inference.scoreboard([sure, unsure])["verdict"].tolist()
    ['holds', 'cannot tell']
    """
    rows = [asdict(claim) | {"verdict": claim.verdict, "rule": claim.rule} for claim in claims]
    return pd.DataFrame(rows, columns=[*(key.name for key in fields(Claim)), "verdict", "rule"])


def tally(claims: Sequence[Claim]) -> str:
    """Number of claims and of each verdict, such as "3 claims: 2 hold, 1 does not"."""
    verdicts = [claim.verdict for claim in claims]
    words: tuple[tuple[Verdict, str, str], ...] = (
        ("holds", "holds", "hold"),
        ("does not hold", "does not", "do not"),
        ("cannot tell", "undecided", "undecided"),
    )
    counts = [(verdicts.count(verdict), singular, plural) for verdict, singular, plural in words]
    parts = [f"{n} {singular if n == 1 else plural}" for n, singular, plural in counts if n]
    head = "1 claim" if len(verdicts) == 1 else f"{len(verdicts)} claims"
    return f"{head}: {', '.join(parts)}" if parts else head


def in_short(value: float) -> str:
    """Three significant digits, without an exponent where possible; NaN: "unknown"."""
    if math.isnan(value):
        return "unknown"
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e15 else f"{value:.3g}"


def markdown(claims: Sequence[Claim]) -> str:
    """The scoreboard as a Markdown table: claim, on, measured, control, verdict."""
    lines = ["| claim | on | measured | control | verdict |", "|---|---|---|---|---|"]
    for claim in claims:
        value = in_short(claim.value)
        if claim.low < claim.high:
            value += f" ({in_short(claim.low)} to {in_short(claim.high)})"
        control = "" if math.isnan(claim.control) else in_short(claim.control)
        if claim.control_name:
            control = f"{control} {claim.control_name}".strip()
        cells = (
            f"{claim.statement} *{claim.source}*",
            claim.on,
            f"{claim.how}: {value}; {claim.rule}",
            control,
            f"**{claim.verdict}**",
        )
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(lines)


def save_claims(claims: Sequence[Claim], path: Path | str) -> None:
    """Write claims as readable JSON, without verdicts, which follow from the numbers.

    >>> about = ("The loss rises.", "Tang et al. (2024)", "babel", "nats", "make reproduce")
    >>> claim = interp.inference.Claim("rise", *about, value=0.4, low=0.1, high=0.7)
    >>> interp.inference.save_claims([claim], folder / "claims.json")
    >>> [claim.verdict for claim in interp.inference.load_claims(folder / "claims.json")]
    ['holds']
    """
    names = [claim.name for claim in claims]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(repeated)} is the name of several claims: give each its own.")
    rows = [
        {key: None if value != value else value for key, value in asdict(claim).items()}  # no NaN
        for claim in claims
    ]
    text = json.dumps({"format": FORMAT, "claims": rows}, indent=1, ensure_ascii=False)
    artifacts.write_text(path, text + "\n")


def load_claims(path: Path | str) -> tuple[Claim, ...]:
    """Read what `save_claims` wrote.

    >>> about = ("The loss rises.", "Tang et al. (2024)", "babel", "nats", "make reproduce")
    >>> claim = interp.inference.Claim("rise", *about, value=0.4, low=0.1, high=0.7)
    >>> interp.inference.save_claims([claim], folder / "claims.json")
    >>> interp.inference.load_claims(folder / "claims.json")[0].value
    0.4
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing. Make it with save_claims.")
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']!r}, not {FORMAT!r}")
        rows: list[dict[str, Any]] = stored["claims"]
        return tuple(Claim(**{key: _known(value) for key, value in row.items()}) for row in rows)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} holds no claims that can be read ({error}): write it with save_claims."
        ) from None


def _cell(text: str) -> str:
    """The text as one table cell: a single line, with bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def _known(stored: Any) -> Any:
    """NaN is stored as null."""
    return math.nan if stored is None else stored
