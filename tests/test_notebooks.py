"""Each notebook is what its text says, holds nothing of a machine, and runs from top to bottom.

They run in a kernel of their own, without a network, each as one test.
"""

import ast
import re
import warnings
from pathlib import Path
from typing import Any

import jupytext
import matplotlib as mpl
import nbformat
import pytest
import torch

import interp
from notebooks.make import FOLDER, NAMES, build, keep_pictures, run
from tests.conftest import LOCK
from tests.test_model import classic_only

BRIDGE = 'model = interp.load("babel", dtype=torch.float32).bridge'
"""The cell of the first notebook that opens a TransformerBridge."""

LONG = {
    *("01_language_neurons", "02_sharing_and_attribution"),
    *("03_patching_across_languages", "05_comparing_methods"),
}
"""What they do is done by tests of its own; whether they still run, `make campaigns` tells."""

SMALLER = {
    "00_from_a_cache": {
        **{"[:60]": "[:30]", "range(0, 48, 12)": "range(0, 24, 12)", "texts[48:]": "texts[24:]"},
    },
    "01_language_neurons": {
        '("en", "de", "fr", "es", "zh", "ja")': '("en", "de", "ja")',
        **{"tokens=1280": "tokens=320", "tokens=4480": "tokens=1280"},
        **{"[:200]": "[:40]", "n=16": "n=4"},
    },
    "02_sharing_and_attribution": {
        '("en", "de", "fr", "es", "zh", "ja")': '("en", "de", "zh")',
        **{"/day_": "/day_after", "topk(100)": "topk(20)", "n_draws=2": "n_draws=1"},
    },
    "03_patching_across_languages": {
        **{"min(24,": "min(6,", "[:120]": "[:60]", "tokens=1920": "tokens=640"},
    },
    "04_your_own_model": {
        **{"12_288": "3072", "tokens=3072": "tokens=768", "n_draws=2": "n_draws=1"},
    },
    "05_comparing_methods": {
        **{"sentences=120": "sentences=80", "splits=4": "splits=2"},
        "block_length=64, n_shards=5, tokens=640": "block_length=32, n_shards=2, tokens=64",
    },
}
"""Amounts of text, prompts and draws that a notebook is run with here, for its own."""

LARGEST = 600_000
"""Bytes of a file with pictures: what GitHub still shows at once."""

MACHINE = re.compile(r"(?<![\w.])(/(?:home|root|tmp|work|usr|opt|var|private|Users)/|[A-Z]:\\)")
"""How paths begin that are there on one machine only."""


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", nbformat.NO_CONVERT)


def shown(notebook) -> str:
    """All that a reader sees of the outputs, pictures left out."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            parts.append(str(output.get("text", "")))
            parts += [str(each) for kind, each in output.get("data", {}).items() if "text" in kind]
    return "\n".join(parts)


def sources(notebook) -> list[tuple[str, str, str]]:
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_six_notebooks_in_the_order_of_reading():
    assert [name.split("_")[0] for name in NAMES] == ["00", "01", "02", "03", "04", "05"]
    assert set(NAMES) >= {"00_from_a_cache", "04_your_own_model", *LONG}
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_in_step_with_its_text(name: str):
    """Otherwise: python notebooks/make.py."""
    assert sources(read(name)) == sources(build(FOLDER / f"{name}.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_reads_back_as_the_text_it_was_made_from(name: str):
    def body(text: str) -> str:
        """Without the head, and without the blank lines that a formatter puts between cells."""
        return re.sub(r"\n{2,}", "\n\n", text.split("# ---\n")[-1]).strip()

    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert body(jupytext.writes(read(name), "py:percent")) == body(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_tables_and_pictures_and_holds_no_paths_and_no_messages(name: str):
    outputs = _outputs(read(name))
    assert MACHINE.findall(shown(read(name))) == []
    assert all(output.get("name") != "stderr" for output in outputs)
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/png" in kinds
    assert kinds.count("text/html") >= 2
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_with_what_will_be_seen_and_ends_with_what_was_found(name: str):
    cells = build(FOLDER / f"{name}.py").cells
    assert re.search(r"\byou will see\b", cells[0].source.replace("\n", " "), re.IGNORECASE)
    (found,) = [n for n, cell in enumerate(cells) if "## What was found" in cell.source]
    after = cells[found:]
    assert "print(" in after[1].source
    assert any("figure for a paper" in cell.source.lower() for cell in after)
    assert any(re.search(r"interp\.plots|draw", cell.source) for cell in after[2:])


def test_paths_of_a_machine_are_caught():
    for text in ("in /home/me/runs", "'/tmp/x'", "C:\\Users", "(/Users/me)"):
        assert MACHINE.search(text), text
    for text in ("runs/tmp/x", "en/de", "https://example.org/home/", "nats/token"):
        assert not MACHINE.search(text), text


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_imports_public_names_and_defines_nothing_long(name: str):
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "interp", node.module
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("interp.") for alias in node.names)
        if (name_of := dotted(node)).startswith("interp."):
            assert is_public(name_of), name_of
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), node.attr
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 10, node.name


def dotted(node: ast.AST) -> str:
    """`interp.plots.save` for an attribute of an attribute of a name; empty: another node."""
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_public(name: str) -> bool:
    """Whether every module on the way lists the next name."""
    here: Any = interp
    for part in name.split(".")[1:]:
        if part not in getattr(here, "__all__", dir(here)):
            return False
        here = getattr(here, part)
    return True


def test_names_that_are_not_public_are_caught():
    assert is_public("interp.plots.save_figure")
    assert is_public("interp.text.read_documents")
    assert is_public("interp.FiringStats.from_caches")
    assert not is_public("interp.text.sources.read_documents")
    assert not is_public("interp.counting.stats")
    assert dotted(ast.parse("interp.plots.save(1)").body[0].value.func) == "interp.plots.save"


@pytest.mark.parametrize("name", NAMES)
def test_no_number_is_typed_into_the_words_of_a_notebook(name: str):
    """Years, headings, names such as 7B, and code aside: results are printed by cells."""
    for cell in build(FOLDER / f"{name}.py").cells:
        if cell.cell_type != "markdown":
            continue
        lines = [line for line in cell.source.splitlines() if not line.startswith(("#", "    "))]
        words = re.sub(r"`[^`]*`|\(?\b(19|20)\d\d\)?", "", " ".join(lines))
        assert re.findall(r"\d+[.,]\d+|\d+ ?%", words) == [], cell.source


def smaller(name: str) -> Any:
    """The notebook with less of everything; an amount that is not in its code any more fails."""
    notebook = build(FOLDER / f"{name}.py")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for amount, fewer in SMALLER[name].items():
        assert any(amount in cell.source for cell in code), amount
        for cell in code:
            cell.source = cell.source.replace(amount, fewer)
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.campaign) if name in LONG else name  # a minute each
        for name in NAMES
    ],
)
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = run(smaller(name), tmp_path)
    said = [
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr"
    ]
    # Bars of what takes long here; anything else is a warning that a reader would see.
    kept = [line for line in "".join(said).splitlines() if line.strip() and "%|" not in line]
    assert kept == [] or not LOCK.is_file(), kept
    assert any("image/png" in output.get("data", {}) for output in _outputs(notebook))
    assert MACHINE.findall(shown(keep_pictures(notebook))) == []
    assert list(tmp_path.iterdir()) == []  # nothing is written where it was started


def hooked_babel() -> Any:
    """Babel as a HookedTransformer, as TransformerLens 3.9 makes it of an official model."""
    from transformer_lens import HookedTransformer, loading
    from transformers import AutoTokenizer

    folder = str(Path(interp.__file__).parent / "babel" / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its own removal
        cfg = loading.get_pretrained_model_config(folder, fold_ln=False, device="cpu")
        state = loading.get_pretrained_state_dict(folder, cfg, None, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = HookedTransformer(cfg, tokenizer, move_to_device=False)
        off = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
        model.load_and_process_state_dict(state, **dict.fromkeys(off, False))
    return model


def run_in_here(name: str, **replaced: str) -> dict[str, Any]:
    """Run the cells in this process, some of them replaced, without magics; what they leave."""
    space: dict[str, Any] = {"hooked_babel": hooked_babel}
    with mpl.rc_context({"backend": "agg"}):
        for cell in build(FOLDER / f"{name}.py").cells:
            if cell.cell_type == "code":
                exec(re.sub("(?m)^%.*$", "", replaced.get(cell.source, cell.source)), space)
    return space


@classic_only
def test_the_first_notebook_runs_cell_for_cell_with_a_hooked_transformer():
    cells = [cell.source for cell in build(FOLDER / "00_from_a_cache.py").cells]
    assert cells.count(BRIDGE) == 1
    classic = run_in_here("00_from_a_cache", **{BRIDGE: "model = hooked_babel()"})
    assert type(classic["model"]).__name__ == "HookedTransformer"
    assert torch.equal(classic["by_hand"], classic["by_library"])
    assert classic["both"] > 0.99
    assert classic["own"] > 3 * classic["own_random"]
    opened = interp.load("babel", dtype=torch.float32)
    tokens, mask, cache = classic["run"](classic["sentences"]["de"][:4])
    assert torch.equal(mask, opened.text_mask(tokens))
    mine = opened.run_with_cache(tokens)[1]
    fires = interp.counting.firing_rate(mine, mask)
    assert (fires - interp.counting.firing_rate(cache, mask)).abs().max() < 0.02


def _outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]
