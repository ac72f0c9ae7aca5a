"""Can a broken file crash a reader, hang it, or make it run something? Each is fed broken ones.

    python -m tests.campaigns.fuzz                    # 3 minutes, shared by all readers
    python -m tests.campaigns.fuzz --minutes 60 --only artifact mask

The readers are those of `tests/test_untrusted_files.py`, which does the same for seconds: a file is
read, or refused with a sentence. Where atheris is installed (pip install atheris) it looks for
bytes that reach new lines of ours; else bytes are changed at random. Where a checksum or a
compression would stop most of them at the door, there is a reader more behind it: "sealed" mends
the checksum, "inside" packs what was changed. Prints runs for each reader; a file that broke one
is kept in --out, and the exit code is 1.
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
"""A reader that takes longer hangs; of the processor where bytes are changed at random."""

MEBIBYTES = 4096
"""A reader that takes more memory has believed a file."""


@dataclass(frozen=True)
class Config:
    """What to run."""

    minutes: float = 3.0
    """For all readers together."""

    only: tuple[str, ...] = ()
    """Names of readers; by default all."""

    out: Path = Path("fuzz")
    """Folder for files that broke a reader."""

    seed: int = 0
    """Of the changes."""

    atheris: bool = True
    """Use atheris if it is there."""


# ---------------------------------------------------------------- behind the door


def sealed(content: bytes) -> bytes:
    """A result with the checksum that its bytes have."""
    begin = content.find(b'"checksum":"', 8, 64) + len(b'"checksum":"')
    rest = content[:8] + content[begin + 32 :]
    checksum = blake2b(rest, digest_size=16).hexdigest().encode()
    return content[:begin] + checksum + content[begin + 32 :]


def in_archive(content: bytes) -> bytes:
    """Torch's archive around these bytes in the place of its pickle."""
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
        (name,) = [each for each in archive.namelist() if each.endswith("data.pkl")]
        return archive.read(name)


@dataclass(frozen=True)
class Target:
    """A reader, and how bytes become the file that it reads."""

    reader: Any
    """One of `tests.test_untrusted_files.READERS`."""

    pack: Callable[[bytes], bytes] = bytes
    unpack: Callable[[bytes], bytes] = bytes
    """What is changed of a good file."""


def targets(readers: dict[str, Any]) -> dict[str, Target]:
    found = {name: Target(reader) for name, reader in readers.items()}
    found["artifact, sealed"] = Target(readers["artifact"], sealed)
    found["mask, inside"] = Target(readers["mask"], in_archive, from_archive)
    for name, reader in readers.items():
        if reader.file.endswith(".gz"):
            found[f"{name}, inside"] = Target(reader, gzip.compress, gzip.decompress)
    return found


# ---------------------------------------------------------------- two ways to change bytes


def changed(good: bytes, dice: random.Random) -> bytes:
    """Some stretches of a file replaced, cut out, repeated or with a bit flipped."""
    content = bytearray(good)
    for _ in range(dice.choice((1, 1, 2, 4, 8))):
        first = dice.randrange(len(content) + 1)
        last = min(len(content), first + dice.choice((0, 1, 1, 2, 4, 8, 40)))
        match dice.randrange(4):
            case 0:
                content[first:last] = dice.randbytes(dice.choice((0, 1, 2, 8, 40)))
            case 1:
                content[first:last] = b""
            case 2:
                content[first:first] = content[first:last] * dice.choice((1, 2, 50))
            case _ if first < len(content):
                content[first] ^= 1 << dice.randrange(8)
    return bytes(content)


def at_random(run: Callable[[bytes], None], good: bytes, seconds: float, seed: int) -> int:
    """How many files were read; the first that breaks the reader ends it with an error."""
    dice, end, runs = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        run(changed(good, dice))
        runs += 1
    return runs


def by_coverage(
    run: Callable[[bytes], None], good: bytes, seconds: float, seed: int, place: Path
) -> None:
    """The same by atheris, which says itself how many, and ends the process."""
    atheris: Any = importlib.import_module("atheris")
    (place / "seeds").mkdir()
    (place / "seeds" / "good").write_bytes(good)
    options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed + 1}"]
    options += [f"-timeout={SECONDS}", f"-rss_limit_mb={MEBIBYTES}", f"-artifact_prefix={place}/"]
    atheris.Setup(["fuzz", *options, str(place / "seeds")], run)
    atheris.Fuzz()


# ---------------------------------------------------------------- one reader after the other


def attack(target: Target, config: Config, seconds: float, place: Path, ends_well: Any) -> None:
    """In a process of its own: break one reader if that can be done."""
    path = place / target.reader.file
    target.reader.good(path)
    good = target.unpack(path.read_bytes())
    assert ends_well(target.reader, path)

    def run(content: bytes) -> None:
        path.write_bytes(target.pack(content))
        (place / "last").write_bytes(content)
        ends_well(target.reader, path)

    def run_in_time(content: bytes) -> None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # atheris has an alarm of its own
        run(content)

    if config.atheris:
        by_coverage(run, good, seconds, config.seed, place)
    runs = at_random(run_in_time, good, seconds, config.seed)
    sys.stderr.write(f"Done {runs} runs in {seconds:.0f} second(s)\n")


def attacked(name: str, target: Target, config: Config, seconds: float, ends_well: Any) -> bool:
    """Whether the reader held; prints how often it was tried."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        place = Path(folder)
        child = os.fork()
        if child == 0:
            said = os.open(place / "said", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            try:
                attack(target, config, seconds, place, ends_well)
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told = (place / "said").read_text(encoding="utf-8", errors="replace")
        runs = re.search(r"Done (\d+) runs", told)
        reached = re.findall(r"cov: (\d+)", told)
        lines = f", {reached[-1]} points of the code reached" if reached else ""
        verdict = "held" if code == 0 else f"BROKEN (exit code {code})"
        print(f"{name:<24}{verdict}: {runs[1] if runs else '?':>8} runs{lines}", flush=True)
        if code:
            config.out.mkdir(parents=True, exist_ok=True)
            kept = config.out / re.sub(r"\W+", "-", name)
            last = place / "last"
            kept.write_bytes(last.read_bytes() if last.is_file() else b"")
            print(f"  what broke it: {kept}\n{told[-1500:]}")
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
    chosen = {name: each for name, each in known.items() if not config.only or name in config.only}
    seconds = 60 * config.minutes / len(chosen)
    held = [attacked(name, each, config, seconds, files.ends_well) for name, each in chosen.items()]
    print(f"{sum(held)} of {len(held)} readers held")
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
