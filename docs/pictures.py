"""Write what the site shows of the shipped model: a recording of the demo, neurons, steered texts.

    COLUMNS=88 interp demo --out results/demo > results/demo.txt
    python docs/pictures.py results/demo results/demo.txt    # anew: some minutes
    python docs/pictures.py                                  # from what docs/assets holds: a second

Reads   the demo's folder and what it printed; or docs/assets/demo.txt, neurons.html, steered.json
Writes  those, docs/assets/demo.svg and docs/guides/steered_texts.md

The neurons are the most exclusive of the demo's, chosen by `interp find`, shown by `interp page`.
The texts are written by `interp steer`, the first of each condition; none is chosen. Translations
are by hand, in steered.json: a new text has none until somebody writes it there.
"""

import base64
import gzip
import html
import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pandas as pd

from interp import cli
from interp.reports.neuron_page import NeuronPage
from interp.results.terminal import columns_of, wrapped
from interp.text.languages import label_name

DOCS = Path(__file__).parent
ASSETS = DOCS / "assets"
FRACTION = 0.004
"""Of all neurons, on the page of the site."""

UNITS = 290
"""Held for a language: the fewest that `experiments/steer_language.py` tries."""

ROWS, COLUMNS = 30, 88
"""Of the terminal in the recording."""

ACROSS, DOWN, EDGE = 7.25, 16, 14
"""Pixels: a character, a line, the frame."""

SECONDS = 5
"""That a screen stands still."""


# ---------------------------------------------------------------- the recording


def screens(printed: str) -> list[list[str]]:
    """What is seen at once: a step of the demo, or the part of it that fits."""
    steps: list[list[str]] = [["$ interp demo --out results/demo", ""]]
    for line in printed.splitlines():
        lines = wrapped(line, COLUMNS) if columns_of(line) > COLUMNS else [line]
        if re.match(r"\d+  \S", line) and len(steps[-1]) > 3:
            steps.append([])
        steps[-1] += lines
    parts = ("\n".join(step).rstrip().split("\n") for step in steps)
    return [part[n : n + ROWS] for part in parts for n in range(0, len(part), ROWS)]


def recording(printed: str) -> str:
    """The screens as one SVG, shown one after another; the first, where motion is not wanted."""
    shown = screens(printed)
    width, height = round(COLUMNS * ACROSS) + 2 * EDGE, ROWS * DOWN + 2 * EDGE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">',
        "<title>What interp demo prints</title>",
        "<style>",
        'text { font: 12px "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d7dae0;',
        "  white-space: pre; }",
        ".ask { fill: #8fc7ff; font-weight: bold; }",
        f"#all {{ animation: next {SECONDS * len(shown)}s steps({len(shown)}, end) infinite; }}",
        f"@keyframes next {{ to {{ transform: translateY(-{len(shown) * height}px); }} }}",
        "@media (prefers-reduced-motion: reduce) { #all { animation: none; } }",
        "</style>",
        f'<rect width="{width}" height="{height}" rx="6" fill="#1d2027"/>',
        '<g id="all">',
    ]
    for number, screen in enumerate(shown):
        for row, line in enumerate(screen):
            y = number * height + EDGE + (row + 1) * DOWN - 4
            lines += _line(line, y)
    return "\n".join([*lines, "</g>", "</svg>", ""])


def _line(line: str, y: int) -> Iterator[str]:
    """Runs of narrow and of wide characters, each as wide as its columns, whatever the font."""
    kind = ' class="ask"' if re.match(r"\d+  \S|\$ ", line) else ""
    column = 0
    for _, run in groupby(line, key=lambda char: columns_of(char) == 2):
        text = "".join(run)
        shown = text.strip()
        if shown:
            before = len(text) - len(text.lstrip())
            x, length = EDGE + (column + before) * ACROSS, columns_of(shown) * ACROSS
            look = f'{kind} x="{x:g}" y="{y}" textLength="{length:g}"'
            yield f"<text{look}>{html.escape(shown)}</text>"
        column += columns_of(text)


# ---------------------------------------------------------------- the page of neurons


def stored_page(text: str) -> NeuronPage:
    """A page that was saved, to be saved by today's code."""
    data = dict(re.findall(r'<script type="text/plain" id="([\w-]+)">([^<]+)</script>', text))
    read = {name: json.loads(gzip.decompress(base64.b64decode(b))) for name, b in data.items()}
    index = read.pop("index")
    layers = {int(name.removeprefix("layer-")): content for name, content in read.items()}
    return NeuronPage(index["title"], index, layers)


def new_page(run: Path) -> NeuronPage:
    """The page of the few neurons that are most exclusive, of those of the run."""
    few, page = run / "neurons-LAPE.json", run / "few.html"
    cli.main(["find", str(run), "--fraction", str(FRACTION), "--out", str(few)])
    short = ["--before", "16", "--after", "8"]
    cli.main(["page", str(run), "--selections", str(few), *short, "--out", str(page)])
    return stored_page(page.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- steered texts


def new_texts(run: Path) -> list[dict[str, str]]:
    """Texts with and without the edit, with the translations of those that were here before."""
    known = {row["text"]: row["translation"] for row in stored_texts()}
    units, out = run / "sentences" / f"neurons-{UNITS}.json", run / "six_languages"
    find = ["find", str(run / "sentences"), "--method", "precision", "--n", str(UNITS)]
    cli.main([*find, "--out", str(units)])
    arguments = ["steer", str(units), "--edit", "median", "--bos", "document", "--n", "2"]
    cli.main([*arguments, "--temperature", "0.4", "--max-new-tokens", "40", "--out", str(out)])
    rows = pd.read_csv(out / "texts.csv", keep_default_na=False).to_dict("records")
    first = rows[0]["to"]
    kept = [row for row in rows if (row["condition"], row["to"]) == ("no edit", first)]
    kept += [row for row in rows if row["condition"] == "neurons"]
    return [
        {
            "to": row["to"] if row["condition"] == "neurons" else "",
            "text": row["text"],
            "language": row["language"],
            "translation": known.get(row["text"], ""),
        }
        for row in kept
    ]


def stored_texts() -> list[dict[str, str]]:
    file = ASSETS / "steered.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def steered_page(texts: list[dict[str, str]]) -> str:
    """A table for each seed: the model as it is, then steered to one language after another."""
    steered = [row for row in texts if row["to"]]
    there = sum(row["to"] == row["language"] for row in steered)
    parts = [
        "# Steering, before and after",
        "<!-- Written by docs/pictures.py. -->",
        "Two texts that the shipped model writes without a prompt, and the same with its units for "
        "a language held at their medians on that language (Kojima et al., 2024): "
        f"{UNITS} units, half of them the best detectors of the language and half the worst. The "
        "texts of a table share their random numbers. They are the first two of each condition, "
        "not chosen, and end after 40 tokens, at temperature 0.4; *written in* is what the "
        "detector says. The model is small, and what it writes often makes little sense. The "
        "English is by hand, and as "
        "literal as it can be; … stands for what is no word.",
        f"{there} of the {len(steered)} steered texts are in the language asked for.",
        "How often it works, beside random units and other ways of steering: "
        "[Switching off and steering](editing.md#steering).",
    ]
    for seed in range(2):
        rows = [texts[n : n + 2][seed] for n in range(0, len(texts), 2)]
        parts.append(f"## {('First', 'Second')[seed]} text")
        parts.append(
            "| steered to | the model writes | written in | in English |\n|---|---|---|---|\n"
            + "\n".join(map(_row, rows))
        )
    parts.append("```sh\n" + COMMANDS + "\n```")
    return "\n\n".join(parts) + "\n"


COMMANDS = f"""\
interp demo --out results/demo
interp find results/demo/sentences --method precision --n {UNITS} \\
    --out results/demo/sentences/neurons-{UNITS}.json
interp steer results/demo/sentences/neurons-{UNITS}.json --edit median --bos document \\
    --n 2 --temperature 0.4 --max-new-tokens 40 --out results/demo/six_languages"""


def _row(row: dict[str, str]) -> str:
    to = label_name(row["to"]) if row["to"] else "nothing edited"
    language = label_name(row["language"])
    cells = [to, row["text"], language, row["translation"] or "(not translated yet)"]
    return f"| {' | '.join(_in_a_cell(cell) for cell in cells)} |"


def _in_a_cell(text: str) -> str:
    return re.sub(r"([*|<>_~\[\]`])", r"\\\1", " ".join(text.split()))


# ---------------------------------------------------------------- files


def drawn(printed: str, page: NeuronPage, texts: list[dict[str, str]]) -> dict[Path, str]:
    """Every file that is written, and its text."""
    return {
        ASSETS / "demo.txt": printed,
        ASSETS / "demo.svg": recording(printed),
        ASSETS / "neurons.html": page.html(),
        ASSETS / "steered.json": json.dumps(texts, ensure_ascii=False, indent=1) + "\n",
        DOCS / "guides" / "steered_texts.md": steered_page(texts),
    }


def stored() -> dict[Path, str]:
    """Every file as it is drawn today from what is stored."""
    printed = (ASSETS / "demo.txt").read_text(encoding="utf-8")
    page = stored_page((ASSETS / "neurons.html").read_text(encoding="utf-8"))
    return drawn(printed, page, stored_texts())


def main(arguments: list[str]) -> None:
    files = stored() if not arguments else {}
    if arguments:
        run, printed = map(Path, arguments)
        texts = new_texts(run)
        files = drawn(printed.read_text(encoding="utf-8"), new_page(run), texts)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
