"""Published claims beside what was measured, with a verdict by a rule that is stated beforehand.

A claim is put as a number and a bar: it holds where the whole interval of the number is beyond the
bar, it does not where the whole interval is not, and otherwise nobody can tell from this much data.
Nothing else decides, so a verdict changes only with the measurement. Words and rules can be data,
in a file that is committed before anything is measured: `read_statements` and `judged`.
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

Side = Literal["above", "below"]
Verdict = Literal["holds", "does not hold", "cannot tell"]

FORMAT = "polyneuron Claims 1"


@dataclass(frozen=True)
class Claim:
    """Something that a paper says, and what came out here.

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
    """What it was tried on: a model, or published files."""

    how: str
    """What was measured, in words and with its unit."""

    command: str
    """What to run to measure it again."""

    value: float
    """What was measured."""

    low: float
    """Lower end of its 95 % interval; of something counted without error, the value."""

    high: float
    """Upper end."""

    bar: float = 0.0
    """Where the claim begins to hold."""

    side: Side = "above"
    """On which side of the bar it holds."""

    control: float = math.nan
    """The same number where the claim should not hold, such as with random neurons. NaN: none."""

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

    @property
    def verdict(self) -> Verdict:
        """By the interval alone. At the bar itself a claim does not hold; NaN cannot tell."""
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
    """What is claimed and the rule that decides, before anything is measured.

    Texts may hold {words} that are known with the measurement only, such as a number of layers.
    """

    name: str
    """The name under which it is measured."""

    says: str
    """What is claimed, in one sentence."""

    source: str
    """Who claims it."""

    measures: str
    """What is measured, with its unit."""

    holds: str
    """"above 0", "below 0.05", or "above control": beyond what the control gives."""

    control: str = ""
    """What the same number is taken of where the claim should not hold; empty: no control."""

    command: str = ""
    """What to run to measure it."""

    on: str = ""
    """What it is tried on, if that is always the same."""

    def __post_init__(self) -> None:
        self.bar_beside(0.0)  # a rule that cannot be read is refused before anything is measured

    @property
    def side(self) -> Side:
        """On which side of the bar the claim holds."""
        return "below" if self.holds.startswith("below ") else "above"

    def bar_beside(self, control: float) -> float:
        """Where the claim begins to hold, if the control gives this number."""
        side, _, bar = self.holds.partition(" ")
        try:
            if side not in ("above", "below"):
                raise ValueError(side)
            return control if bar == "control" else float(bar)
        except ValueError:
            raise ValueError(
                f"{self.name} holds {self.holds!r}, which is no rule: write above or below, and a "
                'number or "control", such as "above 0".'
            ) from None


@dataclass(frozen=True)
class Measurement:
    """A number that a statement is about, and that of its control."""

    value: Estimate | float
    """With its interval; a plain number was counted without error."""

    control: float = math.nan
    """NaN: it could not be measured here."""

    words: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """What the {words} of the statement stand for."""


def read_statements(path: Path | str) -> tuple[Statement, ...]:
    """The statements of a TOML file, in its order: a table each, under the name of the claim.

    A source or command above the first table is that of all that have none of their own.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: statements are a TOML file, a table for each.")
    stored = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    common = {key: each for key, each in stored.items() if not isinstance(each, dict)}
    try:
        return tuple(
            Statement(**(common | each), name=name)
            for name, each in stored.items()
            if isinstance(each, dict)
        )
    except TypeError as error:
        keys = ", ".join(each.name for each in fields(Statement) if each.name != "name")
        raise ValueError(f"{path}: {error}. A statement has {keys}.") from None


def judged(
    statements: Sequence[Statement],
    measured: Mapping[str, Measurement | None],
    on: str,
    name: str = "{claim}",
    **words: str,
) -> list[Claim]:
    """A claim for each statement, with the number measured under its name, in their order.

    Every statement needs a measurement and every measurement a statement. None: it cannot be
    measured here (too few languages, no text), and there is no claim. `name` makes the claim's name
    where the same statements are tried several times, such as "{claim}-xnli"; `words` fill the
    texts of all.
    """
    names = [each.name for each in statements]
    missing = [each for each in names if each not in measured]
    unknown = [each for each in measured if each not in names]
    if missing or unknown:
        raise ValueError(
            "Statements and measurements do not match: "
            f"{', '.join(missing) or 'none'} not measured, {', '.join(unknown) or 'none'} not "
            "stated. State every claim before it is measured; give None where it cannot be."
        )
    pairs = [(each, measured[each.name]) for each in statements]
    return [_judged(each, found, on, name, words) for each, found in pairs if found is not None]


def _judged(
    statement: Statement, found: Measurement, on: str, name: str, common: Mapping[str, str]
) -> Claim:
    words = {**common, **found.words}
    control, known = found.control, not math.isnan(found.control)
    if known and not statement.control:
        raise ValueError(f"{statement.name} has no control, and {control} was measured: name it.")
    try:
        said: dict[str, Any] = {
            "statement": statement.says.format_map(words),
            "how": statement.measures.format_map(words),
            "control_name": statement.control.format_map(words) if known else "",
        }
    except KeyError as error:
        raise ValueError(
            f"{statement.name}: it is not said what {error} stands for, only what {list(words)} do."
        ) from None
    said |= {"name": name.format(claim=statement.name), "on": statement.on or on}
    said |= {"source": statement.source, "command": statement.command, "control": control}
    said |= {"side": statement.side, "bar": statement.bar_beside(control)}
    if isinstance(found.value, Estimate):
        return claim_of(found.value, **said)
    return counted(found.value, **said)


def claim_of(estimate: Estimate, **said: Any) -> Claim:
    """A claim about one number that has an interval; `said` are the other fields of `Claim`."""
    if estimate.value.numel() != 1:
        raise ValueError(
            f"A claim is about one number, and the estimate has shape "
            f"{tuple(estimate.value.shape)}: take its mean, or its least, first."
        )
    value, low, high = (float(each) for each in (estimate.value, estimate.low, estimate.high))
    # An interval from draws may leave out the value, if only by rounding: it is widened to it.
    return Claim(**said, value=value, low=min(low, value), high=max(high, value))


def counted(value: float, **said: Any) -> Claim:
    """A claim about something that was counted without error: the interval has no width."""
    return Claim(**said, value=value, low=value, high=value)


def scoreboard(claims: Iterable[Claim]) -> pd.DataFrame:
    """A row for each claim, in their order.

    >>> said = ("The loss rises.", "Tang et al. (2024)", "babel", "nats", "make reproduce")
    >>> sure = interp.inference.Claim("sure", *said, value=0.4, low=0.1, high=0.7)
    >>> unsure = interp.inference.Claim("unsure", *said, value=0.2, low=-0.1, high=0.5)
    >>> interp.inference.scoreboard([sure, unsure])["verdict"].tolist()
    ['holds', 'cannot tell']
    """
    rows = [asdict(claim) | {"verdict": claim.verdict, "rule": claim.rule} for claim in claims]
    return pd.DataFrame(rows, columns=[*(each.name for each in fields(Claim)), "verdict", "rule"])


def tally(claims: Sequence[Claim]) -> str:
    """How many claims there are and how many hold, such as "3 claims: 2 hold, 1 does not"."""
    verdicts = [claim.verdict for claim in claims]
    words: tuple[tuple[Verdict, str, str], ...] = (
        ("holds", "holds", "hold"),
        ("does not hold", "does not", "do not"),
        ("cannot tell", "cannot be told", "cannot be told"),
    )
    counts = [(verdicts.count(verdict), one, many) for verdict, one, many in words]
    parts = [f"{n} {one if n == 1 else many}" for n, one, many in counts if n]
    head = "1 claim" if len(verdicts) == 1 else f"{len(verdicts)} claims"
    return f"{head}: {', '.join(parts)}" if parts else head


def in_short(value: float) -> str:
    """Three digits that count, without an exponent where there need be none; NaN: "unknown"."""
    if math.isnan(value):
        return "unknown"
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e15 else f"{value:.3g}"


def markdown(claims: Sequence[Claim]) -> str:
    """The scoreboard as a table for a README: claim, on, measured, control, verdict."""
    lines = ["| claim | on | measured | control | verdict |", "|---|---|---|---|---|"]
    for each in claims:
        value = in_short(each.value)
        if each.low < each.high:
            value += f" ({in_short(each.low)} to {in_short(each.high)})"
        control = "" if math.isnan(each.control) else in_short(each.control)
        if each.control_name:
            control = f"{control} {each.control_name}".strip()
        cells = (
            f"{each.statement} *{each.source}*",
            each.on,
            f"{each.how}: {value}; {each.rule}",
            control,
            f"**{each.verdict}**",
        )
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(lines)


def save_claims(claims: Sequence[Claim], path: Path | str) -> None:
    """A file that people can read; verdicts are not stored, they follow from the numbers.

    >>> said = ("The loss rises.", "Tang et al. (2024)", "babel", "nats", "make reproduce")
    >>> claim = interp.inference.Claim("rise", *said, value=0.4, low=0.1, high=0.7)
    >>> interp.inference.save_claims([claim], folder / "claims.json")
    >>> [each.verdict for each in interp.inference.load_claims(folder / "claims.json")]
    ['holds']
    """
    names = [claim.name for claim in claims]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is the name of several claims: give each its own.")
    told = [
        {key: None if each != each else each for key, each in asdict(claim).items()}  # no NaN
        for claim in claims
    ]
    text = json.dumps({"format": FORMAT, "claims": told}, indent=1, ensure_ascii=False)
    artifacts.write_text(path, text + "\n")


def load_claims(path: Path | str) -> tuple[Claim, ...]:
    """Read what `save_claims` wrote.

    >>> said = ("The loss rises.", "Tang et al. (2024)", "babel", "nats", "make reproduce")
    >>> claim = interp.inference.Claim("rise", *said, value=0.4, low=0.1, high=0.7)
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
        return tuple(Claim(**{key: _known(each) for key, each in row.items()}) for row in rows)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} holds no claims that can be read ({error}): write it with save_claims."
        ) from None


def _cell(text: str) -> str:
    """One line, in which a bar is no border."""
    return " ".join(text.split()).replace("|", "\\|")


def _known(stored: Any) -> Any:
    """NaN has no place in JSON."""
    return math.nan if stored is None else stored
