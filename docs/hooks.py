"""Brings pages into the site that stand elsewhere in the checkout, for MkDocs.

README.md is the first page. Notebooks are pages with the outputs they are stored with. Links to
files of the checkout become links to their pages, or, for other files, code.
"""

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from examples import with_tokens
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "results/benchmarks.md",
    "experiments/README.md": "results/studies.md",
    "experiments/LOG.md": "results/log.md",
    "interp/babel/README.md": "results/babel.md",
    "figures/README.md": "guides/figures.md",
    **{
        f"notebooks/{path.name}": f"notebooks/{path.stem}.md"
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    },
}
"""File of the checkout → page of the site."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
KINDS = {"polyneuron": "with polyneuron", "plain": "with TransformerLens and torch alone"}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are not in docs/."""
    for source, page in PAGES.items():
        content = page_of(ROOT / source)
        files.append(File.generated(config, page, content=content))
    for name, picture in PICTURES.items():
        files.append(File.generated(config, name, content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of the page, and what its fences say about tests."""
    page_path = page.file.src_uri
    sources = {target: source for source, target in PAGES.items()}
    source = sources.get(page_path, f"docs/{page_path}")
    markdown = outside_fences(markdown, lambda text: with_links(unbroken(text), source, page_path))
    markdown = re.sub(r"^```python (\S+)$", _titled, markdown, flags=re.MULTILINE)
    return with_tokens(markdown)


def _titled(match: re.Match[str]) -> str:
    title = KINDS.get(match[1])
    return f'```python title="{title}"' if title else "```python"


def outside_fences(markdown: str, change: Any) -> str:
    """The page with its prose changed and its code as it is."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def unbroken(text: str) -> str:
    """The text with every number and its percent sign on one line."""
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)


def with_links(text: str, source: str, page: str) -> str:
    """Links that are relative to the source, made relative to the page."""

    def rewritten(match: re.Match[str]) -> str:
        picture, label, address = match.groups()
        if re.match(r"[a-z]+:|#", address):
            return match[0]
        path, _, anchor = address.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        target = PAGES.get(file) or (file if file in PICTURES else None)
        if target is None and file.startswith("docs/"):
            target = file.removeprefix("docs/")
        if target is None:  # a file of the checkout that is no page
            return f"`{file}`" if label.strip("`") in file else f"{label} (`{file}`)"
        relative = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return f"{picture}[{label}]({relative}{'#' if anchor else ''}{anchor})"

    return LINK.sub(rewritten, text)


def page_of(source: Path) -> str:
    """The Markdown of a file; of a notebook, its cells and the outputs that are stored."""
    text = source.read_text(encoding="utf-8")
    if source.suffix != ".ipynb":
        return text
    cells = [_cell(cell, source.stem, n) for n, cell in enumerate(json.loads(text)["cells"])]
    note = (
        f'!!! note "A notebook"\n    This page is `notebooks/{source.name}`, which runs offline in '
        "a minute or two."
    )
    first, *rest = cells
    title, _, intro = first.partition("\n")
    return "\n\n".join([title, note, intro.strip(), *rest]) + "\n"


def _cell(cell: dict[str, Any], name: str, number: int) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    parts = ["```python\n" + "\n".join(lines) + "\n```"]
    for k, output in enumerate(cell["outputs"]):
        parts.append(_output(output, f"{name}-{number}-{k}.png"))
    return "\n\n".join(part for part in parts if part)


def _output(output: dict[str, Any], picture: str) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![Output of the cell above]({picture})"
    if "text/html" in data:
        html = "".join(data["text/html"])
        table = re.search(r"<table.*</table>", html, re.DOTALL)
        if table:
            lines = (line.strip() for line in table[0].splitlines())
            plain = re.sub(r"<table[^>]*>", "<table>", "".join(lines))  # styled as all tables here
            return f'<div class="output">{plain}</div>'
    text = "".join(data.get("text/plain", output.get("text", "")))
    return f'```text title="output"\n{text.rstrip()}\n```' if text.strip() else ""


def pictures() -> dict[str, bytes]:
    """The figures, and the pictures among the outputs of notebooks, by their names in the site."""
    found = {
        f"figures/{path.name}": path.read_bytes()
        for path in sorted((ROOT / "figures").glob("*.png"))
    }
    for source in PAGES:
        if not source.endswith(".ipynb"):
            continue
        cells = json.loads((ROOT / source).read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells):
            for k, output in enumerate(cell.get("outputs", ())):
                if picture := output.get("data", {}).get("image/png"):
                    name = f"{source.removesuffix('.ipynb')}-{number}-{k}.png"
                    found[name] = base64.b64decode("".join(picture))
    return found


PICTURES = pictures()
