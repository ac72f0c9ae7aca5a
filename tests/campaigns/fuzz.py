"""Can a broken file crash a reader, hang it, or make it run code? Fuzzes every reader.

    python -m tests.campaigns.fuzz                    # 3 minutes, shared by all readers
    python -m tests.campaigns.fuzz --minutes 60 --only artifact mask

The readers are those of `tests/test_untrusted_files.py`, which fuzzes them for seconds: a file must
be read, or refused with a sentence. If atheris is installed (pip install atheris), it searches for
bytes that reach new lines of our code; otherwise bytes are changed at random. A checksum or
compression would reject most changes, so such readers are also fuzzed past it: "sealed" corrects
the checksum, "inside" compresses the changed bytes. Prints the runs of each reader. A file that
breaks one is saved in --out, and the exit code is 1.
"""

import gzip
import importlib.util
import io
import os
import random
import re
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tyro

SECONDS = 20
"""A reader that takes longer hangs; CPU seconds if bytes are changed at random."""

MEBIBYTES = 4096
"""A reader that takes more memory has trusted a size in a file."""


@dataclass(frozen=True)
class Config:
    """What to run."""

    minutes: float = 3.0
    """Minutes for all readers together."""

    only: tuple[str, ...] = ()
    """Names of readers; empty: all."""

    out: Path = Path("fuzz")
    """Folder for files that broke a reader."""

    seed: int = 0
    """Seeds the changes."""

    atheris: bool = True
    """Use atheris if it is installed."""


# ---------------------------------------------------------------- past checksum and compression


def sealed(content: bytes) -> bytes:
    """A result file with its checksum corrected."""
    begin = content.find(b'"checksum":"', 8, 64) + len(b'"checksum":"')
    rest = content[:8] + content[begin + 32 :]
    checksum = blake2b(rest, digest_size=16).hexdigest().encode()
    return content[:begin] + checksum + content[begin + 32 :]


def in_archive(content: bytes) -> bytes:
    """A torch archive with these bytes as its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (
            ("data.pkl", content),
            ("byteorder", b"little"),
            ("version", b"3\n"),
            *((f"data/{number}", bytes(8)) for number in range(4)),
        ):
            archive.writestr(f"neurons/{name}", data)
    return buffer.getvalue()


def from_archive(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return archive.read(name)


@dataclass(frozen=True)
class Target:
    """A reader, and how the fuzzed bytes become a file."""

    reader: Any
    """One of `tests.test_untrusted_files.READERS`."""

    pack: Callable[[bytes], bytes] = bytes
    unpack: Callable[[bytes], bytes] = bytes
    """Extracts the bytes to change from a valid file."""


def targets(readers: dict[str, Any]) -> dict[str, Target]:
    by_name = {name: Target(reader) for name, reader in readers.items()}
    by_name["artifact, sealed"] = Target(readers["artifact"], sealed)
    by_name["mask, inside"] = Target(readers["mask"], in_archive, from_archive)
    for name, reader in readers.items():
        if reader.file.endswith(".gz"):
            by_name[f"{name}, inside"] = Target(reader, gzip.compress, gzip.decompress)
    return by_name


# ---------------------------------------------------------------- two ways to change bytes


def changed(valid: bytes, rng: random.Random) -> bytes:
    """The bytes with some runs replaced, removed or repeated, or bits flipped."""
    content = bytearray(valid)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        first = rng.randrange(len(content) + 1)
        last = min(len(content), first + rng.choice((0, 1, 1, 2, 4, 8, 40)))
        match rng.randrange(4):
            case 0:
                content[first:last] = rng.randbytes(rng.choice((0, 1, 2, 8, 40)))
            case 1:
                content[first:last] = b""
            case 2:
                content[first:first] = content[first:last] * rng.choice((1, 2, 50))
            case _ if first < len(content):
                content[first] ^= 1 << rng.randrange(8)
    return bytes(content)


def at_random(run: Callable[[bytes], None], valid: bytes, seconds: float, seed: int) -> int:
    """Number of files read; the first file that breaks the reader raises its error."""
    rng, end, runs = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        run(changed(valid, rng))
        runs += 1
    return runs


def by_coverage(
    run: Callable[[bytes], None], valid: bytes, seconds: float, seed: int, folder: Path
) -> None:
    """The same with atheris, which prints the number of files itself and ends the process."""
    atheris: Any = importlib.import_module("atheris")
    (folder / "seeds").mkdir()
    (folder / "seeds" / "valid").write_bytes(valid)
    options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed + 1}"]
    options += [f"-timeout={SECONDS}", f"-rss_limit_mb={MEBIBYTES}", f"-artifact_prefix={folder}/"]
    atheris.Setup(["fuzz", *options, str(folder / "seeds")], run)
    atheris.Fuzz()


# ---------------------------------------------------------------- one reader after the other


def attack(target: Target, config: Config, seconds: float, folder: Path, ends_well: Any) -> None:
    """Try to break one reader; runs in its own process."""
    path = folder / target.reader.file
    target.reader.good(path)
    valid = target.unpack(path.read_bytes())
    assert ends_well(target.reader, path)

    def run(content: bytes) -> None:
        path.write_bytes(target.pack(content))
        (folder / "last").write_bytes(content)
        ends_well(target.reader, path)

    def run_in_time(content: bytes) -> None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # atheris has its own alarm
        run(content)

    if config.atheris:
        by_coverage(run, valid, seconds, config.seed, folder)
    runs = at_random(run_in_time, valid, seconds, config.seed)
    sys.stderr.write(f"Done {runs} runs in {seconds:.0f} second(s)\n")


def attacked(name: str, target: Target, config: Config, seconds: float, ends_well: Any) -> bool:
    """Whether the reader held; prints the number of runs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as temporary:
        folder = Path(temporary)
        child = os.fork()
        if child == 0:
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            try:
                attack(target, config, seconds, folder, ends_well)
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output = (folder / "log").read_text(encoding="utf-8", errors="replace")
        runs = re.search(r"Done (\d+) runs", output)
        reached = re.findall(r"cov: (\d+)", output)
        coverage = f", {reached[-1]} points of the code reached" if reached else ""
        verdict = "held" if code == 0 else f"BROKEN (exit code {code})"
        print(f"{name:<24}{verdict}: {runs[1] if runs else '?':>8} runs{coverage}", flush=True)
        if code:
            config.out.mkdir(parents=True, exist_ok=True)
            saved = config.out / re.sub(r"\W+", "-", name)
            last = folder / "last"
            saved.write_bytes(last.read_bytes() if last.is_file() else b"")
            print(f"  broken by {saved}\n{output[-1500:]}")
        return code == 0


def main(config: Config) -> None:
    if config.atheris and importlib.util.find_spec("atheris") is not None:
        atheris: Any = importlib.import_module("atheris")
        with atheris.instrument_imports(include=["interp"]):
            importlib.import_module("interp")
    elif config.atheris:
        print("atheris is not installed: bytes are changed at random.")
        config = Config(config.minutes, config.only, config.out, config.seed, atheris=False)
    files: Any = importlib.import_module("tests.test_untrusted_files")
    known = targets(files.READERS)
    if unknown := set(config.only) - set(known):
        raise SystemExit(f"There is no {', '.join(unknown)}, only {', '.join(known)}.")
    chosen = {name: known[name] for name in known if not config.only or name in config.only}
    seconds = 60 * config.minutes / len(chosen)
    held = [
        attacked(name, target, config, seconds, files.ends_well) for name, target in chosen.items()
    ]
    print(f"{sum(held)} of {len(held)} readers held")
    raise SystemExit(not all(held))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
