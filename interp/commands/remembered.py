"""What a run remembers, so that the commands after it do not ask for it again.

Nothing here loads a library: `interp` alone lists the runs of a folder at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from interp.results.words import Attention, Bos, Split
from interp.runs.refusals import damaged, json_object
from interp.text.languages import given_tags, recorded_tags
from interp.text.sources import check_text

Value = TypeVar("Value")

_DTYPES = ("float32", "bfloat16", "float16")
_OTHER_HALF: dict[Split, Split] = {"all": "all", "train": "held_out", "held_out": "train"}
_SAID = {
    "model": "model {}",
    "dtype": "precision {}",
    "attention": "{} attention",
    "text": "text {}",
    "split": "documents {}",
    "languages": "labels {}",
    "tags": "tags {}",
    "bos": "bos {}",
    "block_length": "blocks of {} tokens",
    "n_shards": "{} shards",
    "tokens": "{:,} tokens per label",
}
"""How a command says what it took, in this order."""


@dataclass(frozen=True)
class Memory:
    """Settings of a run; a command takes from it what it was not given."""

    source: Path | None = None
    """The run or selection that was named. None: there is none, and nothing is remembered."""

    recorded: Mapping[str, Any] = field(default_factory=dict)
    """By option, what the run was made with; an option that it does not record is missing."""

    taken: dict[str, Any] = field(default_factory=dict)
    """By option, what the command has taken so far."""

    def take(self, name: str, given: Value | None, otherwise: Value) -> Value:
        """The value that was given; else that of the run; else `otherwise`."""
        if given is not None and given != ():
            return given
        if name not in self.recorded:
            return otherwise
        self.taken[name] = self.recorded[name]
        return self.recorded[name]

    def take_bos(self, given: Bos | None) -> Bos:
        """What begins text, as `take` does; by default "auto"."""
        auto: Bos = "auto"
        return self.take("bos", given, auto)

    def take_tags(self) -> None:
        """Note the run's tags of labels as taken, if it is these that are in force."""
        tags = self.recorded.get("tags", {})
        if tags and given_tags(tags) == tags:
            self.taken["tags"] = tags

    def take_text(self, given: str | None, model: str | None, labels: Sequence[str] = ()) -> str:
        """The text to read; Babel's only for Babel, and never text that is gone.

        Labels without text are refused, before a model is opened.
        """
        text = self.take("text", given, None)
        if text is None and model in (None, "babel"):
            return "babel"
        if text is None:
            records = (
                f"{self.source} does not record its text" if self.source else "No text is given"
            )
            raise ValueError(
                f"{records}: name a folder of <label>.txt or .jsonl files with --text."
            )
        if given is None and text != "babel" and not Path(text).exists():
            raise FileNotFoundError(
                f"The text of {self.source} is no longer at {text}: name its new place with --text."
            )
        check_text(text, labels)
        return text

    def __str__(self) -> str:
        """One line on what was taken; empty: nothing was."""
        phrases = [
            phrase.format(_listed(value))
            for name, phrase in _SAID.items()
            if (value := self.taken.get(name)) is not None and (name, value) not in _UNSAID
        ]
        return f"From {self.source}: {', '.join(phrases)}." if phrases else ""


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return " ".join(f"{label}={tag}" for label, tag in value.items())
    return " ".join(value) if isinstance(value, tuple) else value


_UNSAID = (("attention", "native"), ("split", "all"))
"""What goes without saying."""


def memory_of(path: Path | None) -> Memory:
    """What the run in a folder, or behind a selection, remembers."""
    record = {} if path is None else run_behind(path)
    return Memory(path, _recorded(record)) if record else Memory()


def run_behind(path: Path) -> dict[str, Any]:
    """The provenance of the run in a folder, or of that a selection was found in; empty: none."""
    if path.is_dir() and (path / "run.json").is_file():
        if not (record := json_object(path / "run.json")):
            raise damaged(path / "run.json")
        return record
    return found_in(path)


def found_in(path: Path) -> dict[str, Any]:
    """The provenance of the run that a selection was found in; empty if it records none."""
    stored: Any = json_object(path / "neurons.json" if path.is_dir() else path)
    for key in ("provenance", "settings", "run"):
        stored = stored.get(key) if isinstance(stored, dict) else None
    return stored if isinstance(stored, dict) else {}


def out_for(given: Path | None, path: Path, step: str, neurons_of: Path | None = None) -> Path:
    """The folder of what follows on a run or selection: by default a subfolder of the run's.

    What follows on another selection than neurons.json, such as neurons-precision.json, has a
    folder of its own, and so have neurons of another run.
    """
    if given is not None:
        return given
    if neurons_of is not None:
        step += f"-of-{(neurons_of if neurons_of.is_dir() else neurons_of.parent).resolve().name}"
    if path.is_dir():
        return path / step
    return path.parent / (step + path.stem.removeprefix("neurons"))


def is_run(path: Path) -> bool:
    """Whether a folder holds a run of `interp collect`, finished or not; not signs of a task."""
    wanted = _part(json_object(path / "run.json"), "wanted")
    return bool(wanted) and not wanted.get("signs")


def _recorded(run: Mapping[str, Any]) -> dict[str, Any]:
    """By option, what a run's provenance says, as far as it says it in the expected form."""
    model, settings, begins = (_part(run, name) for name in ("model", "settings", "bos"))
    split: Any = _one_of(get_args(Split), settings.get("split"))
    languages = run.get("languages")
    packed = not settings.get("sentences")
    values = {
        "model": _typed(str, run.get("name")),
        "dtype": _one_of(_DTYPES, model.get("dtype")),
        "attention": _one_of(get_args(Attention), model.get("attention")),
        "text": _typed(str, settings.get("text")),
        "split": None if split is None else _OTHER_HALF[split],
        "languages": _words(languages),
        "tags": recorded_tags(run) or None,
        "bos": _one_of(get_args(Bos), begins.get("setting")),
        "block_length": _typed(int, settings.get("block_length")) if packed else None,
        "n_shards": _typed(int, run.get("n_shards")),
        "tokens": _typed(int, settings.get("tokens")),
    }
    return {name: value for name, value in values.items() if value is not None}


def _part(run: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = run.get(name)
    return part if isinstance(part, Mapping) else {}


def _typed(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else None


def _one_of(words: Sequence[str], value: Any) -> Any:
    return value if isinstance(value, str) and value in words else None


def _words(value: Any) -> tuple[str, ...] | None:
    words = isinstance(value, list) and value and all(isinstance(word, str) for word in value)
    return tuple(value) if words else None
