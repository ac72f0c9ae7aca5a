"""Test the project with versions other than the locked ones, each in its own environment.

    make newest    # the newest version of every package that pyproject.toml allows
    make lowest    # the lowest version of every package that it names
    make pythons   # the locked versions on the other installed Pythons: the tests of Python itself

The first two take some minutes: they run the model-facing tests, commands of every kind and a
study, and write results/versions/newest.md: package, locked and tried version, deprecations. On
Linux they install torch's GPU build, some gigabytes; so does any Python that has no CPU build.

Imports only the standard library, because the environments that it tests may be broken.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "versions"
PYTHONS = ("3.11", "3.12", "3.13")

TESTS = (
    *("test_model", "test_whatif", "test_collect", "test_interventions", "test_perplexity"),
    *("test_generation", "test_attribution", "test_patching", "test_lens", "test_bake"),
)
"""The tests that depend most on torch, transformers and TransformerLens."""

PYTHON_TESTS = (
    *("test_imports", "test_start", "test_examples", "test_cli", "test_frames", "test_claims"),
    *("test_artifacts", "test_untrusted_files", "test_reprs", "test_stats", "test_pieces"),
    *("test_corpora", "test_texts", "test_tasks", "test_languages", "test_collect", "test_model"),
)
"""Those that depend on Python itself: imports, annotations, dataclasses, parsing, processes, files;
and what loads a model and reads text."""

COMMANDS = (
    "demo --out {out}/demo",
    "plan babel --languages 20 --tokens 1000000",
    "status {out}/demo",
    "stability {out}/demo",
    "export {out}/demo/neurons.json --out {out}/demo.pth",
    "import {out}/demo.pth --languages en de fr es zh ja --neurons 2048 --out {out}/again.json",
    "compare {out}/again.json {out}/demo/neurons.json",
    "evaluate {out}/demo --tasks babel/word_translation --items 4 --n-draws 1 --out {out}/tasks",
    "bake {out}/demo --language de --out {out}/baked",
)
"""One of each kind; the demo collects, finds, deactivates, steers, shares, attributes, patches."""

STUDY = ("-m", "experiments.deactivate_neurons", "tiny")

WARNING = re.compile(r"^(?P<path>/.*?):\d+: (?P<category>\w*Warning): (?P<text>.*)$")


def run(command: Sequence[str | Path], log: Path, **environment: str) -> str:
    """The outcome and the minutes, in a few words; the output goes to `log`."""
    start = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.call(
            [str(argument) for argument in command],
            cwd=ROOT,
            env=settings,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    took = f"{(time.monotonic() - start) / 60:.1f} min"
    return (
        f"passed, {took}" if code == 0 else f"failed with {code}, {took}: {log.relative_to(ROOT)}"
    )


# ---------------------------------------------------------------- newest, lowest


def try_resolution(name: str, uv: str) -> bool:
    """Install, run, and write the table; True if nothing failed."""
    folder, out = ROOT / f".venv-{name}", OUT / name
    python = folder / "bin" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    resolution = ["--resolution", "lowest-direct"] if name == "lowest" else ["--upgrade"]
    install = [uv, "pip", "install", "--python", python, *resolution, "--editable", ".[dev]"]
    venv = [uv, "venv", "--python", sys.executable, folder]
    outcomes = {"environment": run(venv, out / "venv.log")}
    outcomes["installation"] = run(install, out / "install.log")
    if "failed" in outcomes["installation"]:
        print(outcomes["installation"])
        return False
    recorded = out / "said.json"
    tests = [f"tests/{test}.py" for test in TESTS]
    outcomes["tests"] = run(
        [python, "-m", "pytest", "-n", "2", "--said", recorded, *tests], out / "tests.log"
    )
    print(f"tests: {outcomes['tests']}", flush=True)
    interp = str(folder / "bin" / "interp")
    programs = {line.split()[0]: [interp, *line.format(out=out).split()] for line in COMMANDS}
    folder_of_study = str(out / "study")  # its statistics too: other versions' are refused
    folders = ["--out", folder_of_study, "--study.out", folder_of_study]
    programs["a study"] = [str(python), *STUDY, *folders]
    for step, command in programs.items():
        outcomes[step] = run(command, out / f"{step}.log", PYTHONWARNINGS="default")
        print(f"{step}: {outcomes[step]}", flush=True)
    warnings = [*warnings_of_tests(recorded), *warnings_of_commands(out)]
    text = table(name, python, outcomes, warnings)
    (OUT / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return not any("failed" in outcome for outcome in outcomes.values())


def warnings_of_tests(recorded: Path) -> Iterator[tuple[str, str, str]]:
    """Package, category and text of each warning that pytest recorded."""
    if recorded.is_file():
        for path, category, text, _ in json.loads(recorded.read_text(encoding="utf-8")):
            yield path.split("/")[0], category, text


def warnings_of_commands(out: Path) -> Iterator[tuple[str, str, str]]:
    """Package, category and text of each warning in the commands' logs."""
    for log in sorted(out.glob("*.log")):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := WARNING.match(line.strip()):
                parts = Path(match["path"]).parts
                installed = "site-packages" in parts
                package = parts[parts.index("site-packages") + 1] if installed else parts[-2]
                yield package, match["category"], match["text"]
            elif "deprecated" in line:  # logged, not warned
                yield "(logged)", "", line.strip()


def table(
    name: str,
    python: Path,
    outcomes: dict[str, str],
    warnings: Sequence[tuple[str, str, str]],
) -> str:
    """Step by step, the outcome; package by package, the locked and tried versions and warnings."""
    tried, locked = versions(python), versions(Path(sys.executable))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = project["dependencies"] + project["optional-dependencies"]["dev"]
    texts: dict[str, set[str]] = {}
    for package, category, text in warnings:
        texts.setdefault(package.replace("_", "-").lower(), set()).add(f"{category} {text}"[:160])
    names = [re.split(r"[<>=!~ ;\[]", line)[0].replace("_", "-").lower() for line in required]
    lines = [
        f"# {name.capitalize()}, {time.strftime('%Y-%m-%d')}, Python {sys.version.split()[0]}",
        "",
    ]
    lines += [f"- {step}: {outcome}" for step, outcome in outcomes.items()]
    lines += ["", "| package | locked | tried | warnings that point at it |", "|---|---|---|---|"]
    for package in [*names, *(other for other in sorted(texts) if other not in names)]:
        warned = "; ".join(sorted(texts.get(package, ()))).replace("|", "\\|")
        cells = [package, locked.get(package, ""), tried.get(package, ""), warned]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def versions(python: Path) -> dict[str, str]:
    """The version of every package installed in an environment."""
    code = (
        "import importlib.metadata as m, json; print(json.dumps("
        "{d.metadata['Name'].replace('_', '-').lower(): d.version for d in m.distributions()}))"
    )
    return json.loads(subprocess.check_output([python, "-c", code], text=True))


# ---------------------------------------------------------------- other Pythons


def try_pythons() -> bool:
    """Run the tests that depend on Python, with the locked versions, on every other one here."""
    running = ".".join(map(str, sys.version_info[:2]))
    lines = []
    for version in PYTHONS:
        if version == running:
            continue
        python = interpreter(version)
        if python is None:
            lines.append(f"{version}: not installed")
        else:
            folder, out = ROOT / f".venv-{version}", OUT / version
            install = ["sh", "constraints/install.sh", folder.name, "constraints/dev.txt"]
            # Without a CPU build of torch, its GPU build takes some gigabytes.
            outcome = run(install, out / "install.log", PYTHON=str(python), NEEDED_MB="12000")
            if "failed" not in outcome:
                files = [f"tests/{name}.py" for name in PYTHON_TESTS]
                tests = [folder / "bin" / "python", "-m", "pytest", "-n", "2", *files]
                outcome = run(tests, out / "tests.log")
                last = (out / "tests.log").read_text(encoding="utf-8").strip().splitlines()[-1]
                outcome = f"{outcome} ({last.strip('= ')})"
            lines.append(f"{version}: {outcome}")
        print(lines[-1], flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "pythons.md").write_text("".join(f"- {line}\n" for line in lines), encoding="utf-8")
    return not any("failed" in line for line in lines)


def interpreter(version: str) -> Path | None:
    """A working Python of this version, from the system or from pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [
        shutil.which(f"python{version}"),
        *sorted(root.glob(f"versions/{version}.*/bin/python")),
    ]
    for candidate in candidates:
        if candidate is None:
            continue
        try:
            result = subprocess.run([candidate, "-V"], capture_output=True, text=True, check=False)
        except OSError:
            continue
        if result.returncode == 0 and f"Python {version}." in result.stdout:
            return Path(candidate)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=["newest", "lowest", "pythons"])
    parser.add_argument("--uv", help="path of uv, for newest and lowest")
    options = parser.parse_args()
    if options.which == "pythons":
        passed = try_pythons()
    else:
        passed = try_resolution(options.which, options.uv)
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
