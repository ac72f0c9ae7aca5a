"""Try the project with other versions than the locked ones, each in an environment of its own.

    make newest    # the newest of everything that pyproject.toml allows
    make lowest    # the lowest of everything that it names
    make pythons   # the locked versions on the other Pythons that are here: the whole suite

The first two run the model-facing tests, commands of every kind and a study, some minutes in all,
and write results/versions/newest.md: package, locked, tried, and what is deprecated. On Linux they
take torch's build for GPUs, some gigabytes, as do Pythons for which there is no other.

Imports nothing but the standard library: it runs beside environments that may be broken.
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
"""Those that depend most on torch, transformers and TransformerLens."""

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

STUDY = ("-m", "experiments.deactivate_neurons", "tiny", "--out")

WARNING = re.compile(r"^(?P<path>/.*?):\d+: (?P<category>\w*Warning): (?P<text>.*)$")


def run(command: Sequence[str | Path], log: Path, **environment: str) -> str:
    """How it went, in a word or two; what it said is in `log`."""
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with log.open("w", encoding="utf-8") as said:
        code = subprocess.call(
            [str(each) for each in command],
            cwd=ROOT,
            env=settings,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    took = f"{(time.monotonic() - began) / 60:.1f} min"
    return f"well, {took}" if code == 0 else f"failed with {code}, {took}: {log.relative_to(ROOT)}"


# ---------------------------------------------------------------- newest, lowest


def try_resolution(name: str, uv: str) -> bool:
    """Install, run, and write the table; whether all went well."""
    folder, out = ROOT / f".venv-{name}", OUT / name
    python = folder / "bin" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    how = ["--resolution", "lowest-direct"] if name == "lowest" else ["--upgrade"]
    install = [uv, "pip", "install", "--python", python, *how, "--editable", ".[dev]"]
    went = {"environment": run([uv, "venv", "--python", sys.executable, folder], out / "venv.log")}
    went["installation"] = run(install, out / "install.log")
    if "failed" in went["installation"]:
        print(went["installation"])
        return False
    said = out / "said.json"
    tests = [f"tests/{each}.py" for each in TESTS]
    went["tests"] = run(
        [python, "-m", "pytest", "-n", "2", "--said", said, *tests], out / "tests.log"
    )
    print(f"tests: {went['tests']}", flush=True)
    interp = str(folder / "bin" / "interp")
    programs = {each.split()[0]: [interp, *each.format(out=out).split()] for each in COMMANDS}
    programs["a study"] = [str(python), *STUDY, str(out / "study")]
    for step, command in programs.items():
        went[step] = run(command, out / f"{step}.log", PYTHONWARNINGS="default")
        print(f"{step}: {went[step]}", flush=True)
    text = table(name, python, went, [*warnings_of_tests(said), *warnings_of_commands(out)])
    (OUT / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return not any("failed" in each for each in went.values())


def warnings_of_tests(said: Path) -> Iterator[tuple[str, str, str]]:
    if said.is_file():
        for path, category, text, _ in json.loads(said.read_text(encoding="utf-8")):
            yield path.split("/")[0], category, text


def warnings_of_commands(out: Path) -> Iterator[tuple[str, str, str]]:
    for log in sorted(out.glob("*.log")):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := WARNING.match(line.strip()):
                path, where = Path(found["path"]), "site-packages"
                inside = where in path.parts
                top = path.parts[path.parts.index(where) + 1] if inside else path.parent.name
                yield top, found["category"], found["text"]
            elif "deprecated" in line:  # what a package logs
                yield "(logged)", "", line.strip()


def table(
    name: str, python: Path, went: dict[str, str], said: Sequence[tuple[str, str, str]]
) -> str:
    """What was run and how it went; package by package, what was locked and what was tried."""
    tried, locked = versions(python), versions(Path(sys.executable))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["dev"]
    words: dict[str, set[str]] = {}
    for top, category, text in said:
        words.setdefault(top.replace("_", "-").lower(), set()).add(f"{category} {text}"[:160])
    names = [re.split(r"[<>=!~ ;\[]", each)[0].replace("_", "-").lower() for each in asked]
    lines = [
        f"# {name.capitalize()}, {time.strftime('%Y-%m-%d')}, Python {sys.version.split()[0]}",
        "",
    ]
    lines += [f"- {step}: {how}" for step, how in went.items()]
    lines += ["", "| package | locked | tried | warnings that point at it |", "|---|---|---|---|"]
    for each in [*names, *(other for other in sorted(words) if other not in names)]:
        spoken = "; ".join(sorted(words.get(each, ()))).replace("|", "\\|")
        lines.append(f"| {each} | {locked.get(each, '')} | {tried.get(each, '')} | {spoken} |")
    return "\n".join(lines) + "\n"


def versions(python: Path) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json; print(json.dumps("
        "{d.metadata['Name'].replace('_', '-').lower(): d.version for d in m.distributions()}))"
    )
    return json.loads(subprocess.check_output([python, "-c", code], text=True))


# ---------------------------------------------------------------- other Pythons


def try_pythons() -> bool:
    """The whole suite, with the locked versions, on each other Python that is here."""
    here = ".".join(map(str, sys.version_info[:2]))
    lines = []
    for version in PYTHONS:
        if version == here:
            continue
        python = interpreter(version)
        if python is None:
            lines.append(f"{version}: not installed here")
        else:
            folder, out = ROOT / f".venv-{version}", OUT / version
            install = ["sh", "constraints/install.sh", folder.name, "constraints/dev.txt"]
            # Where there is no build of torch for a CPU alone, that for GPUs takes some gigabytes.
            how = run(install, out / "install.log", PYTHON=str(python), NEEDED_MB="12000")
            if "failed" not in how:
                tests = [folder / "bin" / "python", "-m", "pytest", "-n", "2"]
                how = run(tests, out / "tests.log")
                last = (out / "tests.log").read_text(encoding="utf-8").strip().splitlines()[-1]
                how = f"{how} ({last.strip('= ')})"
            lines.append(f"{version}: {how}")
        print(lines[-1], flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "pythons.md").write_text("".join(f"- {each}\n" for each in lines), encoding="utf-8")
    return not any("failed" in each for each in lines)


def interpreter(version: str) -> Path | None:
    """A Python of this version that runs: the system's, or one of pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [
        shutil.which(f"python{version}"),
        *sorted(root.glob(f"versions/{version}.*/bin/python")),
    ]
    for candidate in candidates:
        if candidate is None:
            continue
        try:
            told = subprocess.run([candidate, "-V"], capture_output=True, text=True, check=False)
        except OSError:
            continue
        if told.returncode == 0 and f"Python {version}." in told.stdout:
            return Path(candidate)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=["newest", "lowest", "pythons"])
    parser.add_argument("--uv", help="the program uv, for newest and lowest")
    given = parser.parse_args()
    well = try_pythons() if given.which == "pythons" else try_resolution(given.which, given.uv)
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
