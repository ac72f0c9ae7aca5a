"""Published claims beside what was measured, with a verdict by a rule that is stated beforehand.

A claim is put as a number and a bar: it holds where the whole interval of the number is beyond the
bar, it does not where the whole interval is not, and otherwise nobody can tell from this much data.
Nothing else decides, so a verdict changes only with the measurement.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
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
    >>> claim = interp.Claim("own-language", *about, *how, value=0.4, low=0.1, high=0.7)
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
    >>> sure = interp.Claim("sure", *said, value=0.4, low=0.1, high=0.7)
    >>> unsure = interp.Claim("unsure", *said, value=0.2, low=-0.1, high=0.5)
    >>> interp.scoreboard([sure, unsure])["verdict"].tolist()
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
    >>> claim = interp.Claim("rise", *said, value=0.4, low=0.1, high=0.7)
    >>> interp.save_claims([claim], folder / "claims.json")
    >>> [each.verdict for each in interp.load_claims(folder / "claims.json")]
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
    >>> claim = interp.Claim("rise", *said, value=0.4, low=0.1, high=0.7)
    >>> interp.save_claims([claim], folder / "claims.json")
    >>> interp.load_claims(folder / "claims.json")[0].value
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
