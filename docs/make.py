"""Write the pages that follow from the code: commands, selection methods, reference, llms.txt.

    python docs/make.py          # a second; loads no model

Reads   the options of every command, interp/scores/methods.py, interp/**/__init__.pyi, mkdocs.yml
Writes  docs/reference/*.md, docs/methods/selectors.md, docs/llms.txt

The same code gives the same pages.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from interp.cli import COMMANDS, SECTIONS
from interp.commands.options import Option, Parser, options_of
from interp.scores.methods import METHODS, Method

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
STAGES = (
    *("models", "text", "runs", "counting", "inference", "interventions", "scores", "selections"),
    *("prompts", "evaluations", "plots", "reports"),
)
"""Namespaces with a page, in the order of the data."""

NAMED = {"sentence_means": "sentences"}
"""What a run keeps → the option that keeps it, where their names differ."""

NOTE = "<!-- Written by docs/make.py: edit the code that it describes. -->"


# ---------------------------------------------------------------- commands


def commands() -> str:
    """Every command with all its options, from what reads them."""
    parts = [
        "# Commands",
        NOTE,
        "`interp` alone, in a folder of runs, lists them and what is next for each. "
        "`interp COMMAND --help` prints what is here.",
        "With `--json`, a command that prints a table writes it to standard output as JSON, one "
        "object per row with the columns of its `.csv`, and everything else to standard error:",
        "```sh\ninterp find results/demo --json > neurons.json\ninterp --json\n```",
        "What is no finite number is `null`. Exit codes are 0, 1 if the doctor found a fault, 2 if "
        "a sentence on standard error says what to change, and 130 after Ctrl-C.",
    ]
    for title, section in SECTIONS.items():
        parts.append(f"## {title}")
        for name, command in section.items():
            parts += [f"### interp {name}", *_description(command), _options(Parser(name, command))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _description(command: type) -> Iterator[str]:
    """The docstring, its examples as code."""
    for paragraph in (inspect.getdoc(command) or "").split("\n\n"):
        if paragraph.strip().startswith(("interp ", "printf ")):
            yield f"```sh\n{textwrap.dedent(paragraph).strip()}\n```"
        else:
            yield _prose(" ".join(paragraph.split()))


def _options(parser: Parser) -> str:
    if not parser.options:
        return ""
    first = [option for option in parser.options if option.positional]
    rows = [*first, *(option for option in parser.options if not option.positional)]
    lines = [f"| `{_name(option)}` | {_prose(option.help)} |" for option in rows]
    return "\n".join(["| option | |", "|---|---|", *lines])


def _name(option: Option) -> str:
    also = f", {option.named}" if option.either else ""
    return f"{option.flag}{option.value}{also}"


def _prose(text: str) -> str:
    """Text of the terminal as Markdown."""
    return re.sub(r"([|<>*_~\[\]])", r"\\\1", text)


# ---------------------------------------------------------------- methods


def selectors() -> str:
    """One table of every selection method."""
    lines = [
        f"| `{name}` | {method.title}: {method.says} | {method.source} | {_kept(method)} | "
        f"{', '.join(f'`{option}`' for option in method.options)} | "
        f"{'yes' if method.sizes_compare else 'no'} |"
        for name, method in METHODS.items()
    ]
    return "\n".join(
        [
            "# All selection methods",
            "",
            NOTE,
            "",
            "`interp find RUN --method NAME`, or in Python `interp.selections.select(run, NAME)`. "
            "[Which to choose](../guides/choosing_a_method.md).",
            "",
            '<div class="methods" markdown>',
            "",
            "| name | chooses | source | needs | settings | size can be set |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            "</div>",
            "",
            "*needs*: what `interp collect` must keep while it reads. *settings*: what changes its "
            "choice. *size can be set*: by `--n` for every language, so that methods can be "
            "compared at equal size. Every method gives a `NeuronSelection`, with the same files, "
            "controls and edits.",
            "",
            "What a setting means:",
            "",
            "::: interp.scores.Settings",
            "    options:",
            "      show_root_heading: false",
            "      show_root_toc_entry: false",
            "",
        ]
    )


def _kept(method: Method) -> str:
    """The option of `interp collect` that a method needs."""
    if method.needs is None:
        return "counts"
    word = NAMED.get(method.needs, method.needs).replace("_", "-")
    flag = f"--{word}" if method.units == "post" else f"--units {word}"
    assert flag.split()[0] in {option.named for option in options_of(COMMANDS["collect"])}, flag
    return f"`{flag}`"


# ---------------------------------------------------------------- reference


def names_of(folder: Path) -> dict[str, str]:
    """Public name → the module of this folder that defines it, relative to it."""
    stub = folder / "__init__.pyi"
    source = stub if stub.is_file() else folder / "__init__.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (listed,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    origin = {
        alias.asname or alias.name: (node.module or "").removeprefix("interp.plots.")
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {name: origin.get(name, "") for name in listed}


def reference(folder: Path, namespace: str) -> str:
    """A page with every name of a namespace that is defined below it."""
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    names = {name: module for name, module in names_of(folder).items() if module}
    parts = [f"# {namespace}", NOTE, doc.split("\n\n")[0]]
    stages: dict[str, list[str]] = {}
    for name, module in names.items():
        stages.setdefault(module.split(".")[0], []).append(name)
    if namespace != "interp":
        parts += [f"::: {namespace}.{name}" for name in names]
        return "\n\n".join(parts) + "\n"
    parts.append(
        "What most programs need. Every folder has further names of its own, on a page of its own."
    )
    for stage in STAGES:
        if stage in stages:
            parts.append(f"## {stage}")
            parts += [f"::: interp.{name}" for name in stages[stage]]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- for programs that read


def llms() -> str:
    """The pages of the site and the first line of each, as plain text."""
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.SafeLoader)
    lines = [f"# {config['site_name']}", "", f"> {config['site_description']}", ""]
    for section in config["nav"]:
        ((title, nav),) = section.items()
        lines += [f"## {title}", ""]
        lines += [f"- [{name}]({path[:-3]}.html)" for name, path in entries(nav)]
        lines.append("")
    return "\n".join(lines)


def entries(nav: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Title and file of every page of a part of the navigation."""
    for entry in nav:
        ((name, path),) = entry.items()
        if isinstance(path, list):
            yield from entries(path)
        else:
            yield name, path


def pages() -> dict[Path, str]:
    """Every page that is made here."""
    made = {
        DOCS / "reference" / "commands.md": commands(),
        DOCS / "methods" / "selectors.md": selectors(),
        DOCS / "reference" / "interp.md": reference(ROOT / "interp", "interp"),
        DOCS / "llms.txt": llms(),
    }
    for stage in STAGES:
        page = reference(ROOT / "interp" / stage, f"interp.{stage}")
        made[DOCS / "reference" / f"{stage}.md"] = page
    return made


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
