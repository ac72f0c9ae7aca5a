"""Published claims, what was measured, and a verdict by a rule that was stated beforehand.

A claim is a number, a bar and a control. It holds if the number's whole interval is beyond the bar
and the interval of its difference from the control is beyond zero. If only the first is so, it is
no more than its control; if the whole interval is short of the bar, it does not hold; otherwise the
data do not decide. Nothing else counts, so a verdict changes only with the measurement. What is
claimed is in files that are committed before anything is measured (`statements`).
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from interp.inference.permutation import false_discovery
from interp.results import artifacts
from interp.results.display import Cells, Shown

Side = Literal["above", "below", "within"]
Verdict = Literal["holds", "no more than its control", "does not hold", "cannot tell"]

NO_MORE: Verdict = "no more than its control"

FORMAT = "polyneuron Claims 2"
LEVEL = 0.95
"""Of the intervals of all claims."""


@dataclass(frozen=True)
class Claim(Shown):
    """A statement of a paper, and what was measured here.

    >>> about = ("The loss rises most in its own language.", "Tang et al. (2024)", "babel")
    >>> how = ("nats more than elsewhere", "python -m experiments.compare_methods")
    >>> claim = interp.inference.Claim("own-language", *about, *how, value=0.4, low=0.1, high=0.7)
    >>> claim.verdict, claim.rule
    ('holds', 'holds if the whole interval is above 0')
    >>> control = {"control": 0.3, "control_name": "random neurons"}
    >>> interp.inference.Claim("own", *about, *how, 0.4, 0.1, 0.7, **control).verdict
    'no more than its control'
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
    """Lower end of its 95 % interval; the value itself if everything there is was counted."""

    high: float
    """Upper end."""

    bar: float = 0.0
    """What the interval is compared with."""

    side: Side = "above"
    """Side of the bar on which the claim holds; within: no farther from zero than the bar."""

    over: str = ""
    """What the interval is over, such as "documents"; empty: counted, nothing was sampled."""

    control: float = math.nan
    """The same number where the claim should not hold, such as for random neurons. NaN: none."""

    control_name: str = ""
    """What the control is, or why there is none."""

    difference: float = math.nan
    """The value minus the control. NaN: the control, if there is one, is known without error."""

    difference_low: float = math.nan
    """Lower end of its 95 % interval, paired where both were measured on the same items."""

    difference_high: float = math.nan
    """Upper end."""

    degrees_of_freedom: float = math.nan
    """Of the t intervals. NaN: they are others, and p-values come from the normal distribution."""

    stated_as: str = ""
    """Name of its statement, which may be tested on several models or tasks; empty: it has none."""

    commit: str = ""
    """Commit of the code that measured it, with "-dirty" if files had changed; empty: unknown."""

    def __post_init__(self) -> None:
        if self.side not in ("above", "below", "within"):
            raise ValueError(f"{self.name}: the side is above, below or within, not {self.side!r}.")
        if self.low > self.value or self.value > self.high:
            raise ValueError(
                f"{self.name}: {self.value} is not within its interval, {self.low} to {self.high}."
            )

    def __repr__(self) -> str:
        return f"Claim({self.name}: {self.statement} {self._measured}: {self.verdict})"

    def _cells(self) -> Cells:
        control = "" if math.isnan(self.control) else f"{self.control:.4g} {self.control_name}"
        rows = [[self.how, self._measured, self.rule, control, self.verdict]]
        return Cells(("measured", "value", "rule", "control", "verdict"), rows)

    @property
    def _measured(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    @property
    def has_control(self) -> bool:
        """There is a number to be beyond, other than the bar."""
        return not math.isnan(self.control)

    @property
    def from_changed_files(self) -> bool:
        """Whether the code that measured it is not that of a commit, or not known."""
        return not self.commit or self.commit.endswith("-dirty")

    @property
    def from_control(self) -> tuple[float, float, float]:
        """The value minus the control, and the ends of its interval."""
        if math.isnan(self.difference):
            control = self.control
            return self.value - control, self.low - control, self.high - control
        return self.difference, self.difference_low, self.difference_high

    @property
    def verdict(self) -> Verdict:
        """Decided by the intervals alone. At the bar itself: does not hold. NaN: cannot tell.

        No more than its control: beyond the bar, but not shown to be beyond the control.
        """
        if self._short_of_bar:
            return "does not hold"
        if not self._beyond_bar:
            return "cannot tell"
        return "holds" if self._beyond_control else NO_MORE

    @property
    def _beyond_bar(self) -> bool:
        if self.side == "within":
            return -self.bar < self.low and self.high < self.bar
        return self.low > self.bar if self.side == "above" else self.high < self.bar

    @property
    def _short_of_bar(self) -> bool:
        if self.side == "within":
            return self.low >= self.bar or self.high <= -self.bar
        return self.high <= self.bar if self.side == "above" else self.low >= self.bar

    @property
    def _beyond_control(self) -> bool:
        """For "within": different from the control, which shows that there was something to see."""
        _, low, high = self.from_control
        above, below = low > 0, high < 0
        ways = {"above": above, "below": below, "within": above or below}
        return ways[self.side] or not self.has_control

    @property
    def p_value(self) -> float:
        """Two-sided p of the claim: the larger of those against the bar and against the control.

        Below .05: holds. NaN: nothing was sampled.
        """
        if not self.low < self.high:
            return math.nan
        whole = (self.value, self.low, self.high)
        tests = {
            "above": [self._p(*whole, self.bar, 1)],
            "below": [self._p(*whole, self.bar, -1)],
            "within": [self._p(*whole, -self.bar, 1), self._p(*whole, self.bar, -1)],
        }[self.side]
        if self.has_control:
            sides = {"above": (1,), "below": (-1,), "within": (1, -1)}[self.side]
            tests.append(min(self._p(*self.from_control, 0.0, side) for side in sides))
        return max(tests)

    def _p(self, value: float, low: float, high: float, bar: float, side: int) -> float:
        """Of being on this side (1: above) of the bar, from the half of the interval towards it."""
        reach = value - low if side == 1 else high - value
        distance = side * (value - bar)
        if reach == 0:
            return 0.0 if distance > 0 else 1.0
        tail = (1 + LEVEL) / 2
        if math.isnan(self.degrees_of_freedom):
            return min(1.0, float(2 * ndtr(-distance / reach * ndtri(tail))))
        freedom = self.degrees_of_freedom
        return min(1.0, float(2 * stdtr(freedom, -distance / reach * stdtrit(freedom, tail))))

    @property
    def rule(self) -> str:
        """The rule in words."""
        also = " and differs from its control" if self.side == "within" else " and its control"
        also = also if self.has_control and self.control != self.bar else ""
        zero = " of zero" if self.side == "within" else ""
        return f"holds if the whole interval is {self.side} {self.bar:.4g}{zero}{also}"


def scoreboard(claims: Iterable[Claim]) -> pd.DataFrame:
    """One row per claim, in order, with its p-value and the false discovery rate of all claims that
    are at least as sure (Benjamini and Hochberg, 1995): `q_value`.

    >>> about = ("The loss rises.", "Tang et al. (2024)", "babel", "nats", "make reproduce")
    >>> sure = interp.inference.Claim("sure", *about, value=0.4, low=0.1, high=0.7)
    >>> unsure = interp.inference.Claim("unsure", *about, value=0.2, low=-0.1, high=0.5)
    >>> interp.inference.scoreboard([sure, unsure])["verdict"].tolist()
    ['holds', 'cannot tell']
    """
    claims = list(claims)
    derived = ("verdict", "rule", "p_value")
    rows = [asdict(claim) | {name: getattr(claim, name) for name in derived} for claim in claims]
    frame = pd.DataFrame(rows, columns=[*(key.name for key in fields(Claim)), *derived])
    return frame.assign(q_value=false_discovery_rates(claims))


def false_discovery_rates(claims: Sequence[Claim]) -> list[float]:
    """For each claim, the share of false ones to expect among those that are at least as sure.

    NaN: nothing was sampled, so it is no test.
    """
    p_values = torch.tensor([claim.p_value for claim in claims], dtype=torch.float64)
    return false_discovery(p_values).tolist() if len(claims) else []


def tally(claims: Sequence[Claim]) -> str:
    """Number of claims and of each verdict, such as "3 claims: 2 hold, 1 does not"."""
    verdicts = [claim.verdict for claim in claims]
    words: tuple[tuple[Verdict, str, str], ...] = (
        ("holds", "holds", "hold"),
        (NO_MORE, f"is {NO_MORE}", "are no more than their control"),
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
    """The scoreboard as a Markdown table: claim, on, measured, control, verdict.

    Beside the verdict stands q, the false discovery rate over these claims.
    """
    lines = ["| claim | on | measured | control | verdict |", "|---|---|---|---|---|"]
    for claim, q in zip(claims, false_discovery_rates(claims), strict=True):
        cells = (
            f"{claim.statement} *{claim.source}*",
            claim.on,
            f"{claim.how}: {measured_in_short(claim)}; {claim.rule}",
            control_in_short(claim),
            f"**{claim.verdict}**" + ("" if math.isnan(q) else f", q {in_short(max(q, 1e-4))}"),
        )
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(lines)


def measured_in_short(claim: Claim) -> str:
    """The value, its interval and what that is over."""
    value = in_short(claim.value)
    if not claim.low < claim.high:
        return value
    over = f" over {claim.over}" if claim.over else ""
    return f"{value} ({in_short(claim.low)} to {in_short(claim.high)}{over})"


def control_in_short(claim: Claim) -> str:
    """The control and, where it has an interval of its own, the difference from it."""
    if math.isnan(claim.control):
        return claim.control_name
    control = f"{in_short(claim.control)} {claim.control_name}".strip()
    if math.isnan(claim.difference):
        return control
    more, low, high = map(in_short, claim.from_control)
    return f"{control}; difference {more} ({low} to {high})"


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
