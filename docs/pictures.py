"""Draw `interp demo` as a recording of a terminal, and cut a small page of neurons from its run.

    COLUMNS=96 interp demo --out results/demo | tee docs/assets/demo.txt    # minutes
    python docs/pictures.py results/demo                                    # a minute

Reads   docs/assets/demo.txt; counts, contexts and selection in results/demo
Writes  docs/assets/demo.svg, docs/assets/neurons.html

All that the recording shows was printed; only the time between its lines is made up. The same run
gives the same files.
"""

import html
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

ASSETS = Path(__file__).parent / "assets"
COLUMNS, ROWS = 96, 27
"""Of the terminal that is drawn."""

ADVANCE, LEADING, MARGIN, BAR = 7.23, 17, 16, 30
"""Pixels: the width of a letter, from line to line, around the text, above it."""

LINE, QUESTION, END = 0.07, 1.6, 8.0
"""Seconds before a line, before the question that a step begins with, and at the end."""

PER_LANGUAGE = 4
"""Neurons of every language on the page."""

SVG = Template("""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 $width $height" width="$width" \
height="$height" role="img" aria-label="What interp demo prints">
<style>
text { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d6dae3; \
white-space: pre }
.question { fill: #8ab4f8; font-weight: bold }
.command { fill: #ffffff; font-weight: bold }
.ok { fill: #81c995 }
.quiet { fill: #9aa0ab }
#lines { transform: translateY(${end}px); animation: scroll ${seconds}s step-end infinite }
#cover { transform: translateY(${below}px); animation: cover ${seconds}s step-end infinite }
@media (prefers-reduced-motion: reduce) { #lines, #cover { animation: none } }
@keyframes scroll { $scroll }
@keyframes cover { $cover }
</style>
<clipPath id="screen"><rect y="$bar" width="$width" height="$inside"/></clipPath>
<rect width="$width" height="$height" rx="8" fill="#1d2027"/>
<circle cx="18" cy="15" r="5" fill="#5b6070"/><circle cx="36" cy="15" r="5" fill="#5b6070"/>\
<circle cx="54" cy="15" r="5" fill="#5b6070"/>
<g clip-path="url(#screen)"><g id="lines">
$text
<rect id="cover" y="$bar" width="$width" height="$inside" fill="#1d2027"/>
</g></g>
</svg>
""")


# ---------------------------------------------------------------- the recording


def recording(printed: str) -> str:
    """The SVG: lines appear one by one, and the text scrolls when the screen is full."""
    lines = [("command", "$ interp demo"), *_lines(printed)]
    times = _times(lines)
    seconds = times[-1] + END
    shown = [n + 1 for n in range(len(lines))]
    up = [LEADING * -max(0, n - ROWS) for n in shown]
    down = [LEADING * n for n in shown]
    inside = ROWS * LEADING + MARGIN
    return SVG.substitute(
        width=round(COLUMNS * ADVANCE + 2 * MARGIN),
        height=BAR + inside,
        bar=BAR,
        inside=inside,
        seconds=f"{seconds:.2f}",
        end=up[-1],
        below=down[-1] + MARGIN,
        scroll=_keyframes(times, up, seconds),
        cover=_keyframes(times, down, seconds),
        text="\n".join(_text(n, kind, line) for n, (kind, line) in enumerate(lines)),
    )


def _lines(printed: str) -> Iterator[tuple[str, str]]:
    """Every line of the terminal with its kind; longer ones go on in the next."""
    for line in printed.strip("\n").split("\n"):
        number = line.split("  ")[0]
        kind = "question" if number.isdecimal() and line[-1] in "?." else "plain"
        kind = "ok" if line.startswith("ok  ") else kind
        kind = "quiet" if line.startswith(("From ", "The ", "Counts are")) else kind
        kind = "command" if line.startswith("Next: ") else kind
        for start in range(0, max(1, len(line)), COLUMNS):
            yield kind, line[start : start + COLUMNS]


def _times(lines: Sequence[tuple[str, str]]) -> list[float]:
    times, now = [], 0.0
    for kind, _ in lines:
        now += QUESTION if kind == "question" else LINE
        times.append(now)
    return times


def _keyframes(times: Sequence[float], offsets: Sequence[int], seconds: float) -> str:
    """Where the animated group stands from each time on; equal neighbors are left out."""
    frames = [f"0% {{ transform: translateY({min(offsets[0], 0)}px) }}"]
    before = None
    for time, offset in zip(times, offsets, strict=True):
        if offset != before:
            frames.append(f"{100 * time / seconds:.3f}% {{ transform: translateY({offset}px) }}")
        before = offset
    return " ".join(frames)


def _text(number: int, kind: str, line: str) -> str:
    y = BAR + LEADING * (number + 1) - 4
    named = f' class="{kind}"' if kind != "plain" else ""
    return f'<text x="{MARGIN}" y="{y}"{named}>{html.escape(line, quote=False)}</text>'


# ---------------------------------------------------------------- the page


def small_page(run: Path) -> str:
    """A page of the neurons of every language that fire most for it alone."""
    import torch

    import interp

    folder = interp.Run.open(run)
    neurons = interp.NeuronSelection.from_json(run / "neurons.json")
    entropy = interp.language_entropy(folder.firing.rate)
    mask = torch.zeros_like(neurons.mask)
    for row, code in enumerate(neurons.languages):
        chosen = neurons[code].nonzero()
        first = entropy[neurons[code]].argsort(stable=True)[:PER_LANGUAGE]
        mask[row][tuple(chosen[first].T)] = True
    few = interp.NeuronSelection(mask, neurons.languages)
    model = interp.load("babel", dtype=torch.float32)
    page = interp.neuron_page(model, folder.firing, {"LAPE": few}, folder.contexts, progress=False)
    return page.html()


def main(run: Path) -> None:
    printed = (ASSETS / "demo.txt").read_text(encoding="utf-8")
    (ASSETS / "demo.svg").write_text(recording(printed), encoding="utf-8")
    (ASSETS / "neurons.html").write_text(small_page(run), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
