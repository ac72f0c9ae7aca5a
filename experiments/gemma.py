"""The presets `gemma`: the studies on Gemma 3 270M, a pretrained model that pip installs.

    make real                                               # text and tasks of this project
    make real TEXT=FOLDER FACTS=FOLDER INFERENCES=FOLDER    # other ones, in more languages

Text is <language>.txt, one sentence a line; tasks are <language>.jsonl (`interp.read_task`).
Counts and texts are read in bfloat16, three times as fast as float32 on two cores.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.runner import Preset
from experiments.study import LANGUAGES, Study

MODEL = "gemma3-270m"
"""A model of `experiments.real_models`."""

STUDY = Study(
    model=MODEL,
    languages=LANGUAGES,
    tokens=19_200,
    held_out_tokens=1280,
    held_out_bos="auto",
    sentences=300,
    dtype="bfloat16",
)
"""The six languages of the shipped model. Its parallel sentences have about half these tokens."""

EXACT = replace(STUDY, dtype="float32")
"""For gradients and small effects, of which bfloat16 keeps two or three digits."""

MANY = ("en", "de", "fr", "es", "zh", "ja", "ru", "ar", "hi", "vi", "sw", "ko")
"""Languages of the studies about many, on other text than the project's own."""

MANY_TASKS = ("en", "de", "fr", "es", "zh", "ru", "ar", "hi", "vi", "th", "tr", "el")
"""The same for tasks: those that both BMLAMA and XNLI have."""


def preset(minutes: int, study: Study = STUDY, **differences: Any) -> Preset:
    """The `gemma` preset of a study; `minutes` is its time on two cores."""
    return Preset(f"Gemma 3 270M: about {minutes} minutes on 2 cores.", study, differences)


@dataclass(frozen=True)
class Data:
    """Text and tasks other than those of this project."""

    text: Path | None = None
    """Folder of <language>.txt."""

    facts: Path | None = None
    """Folder of <language>.jsonl with facts, such as BMLAMA."""

    inferences: Path | None = None
    """Folder of <language>.jsonl with inferences, such as XNLI."""

    def options(self, study: str) -> list[str]:
        """Options of a study's command that make it read these."""
        chosen: list[str] = []
        if self.text and study in _READ_TEXT:
            chosen += ["--study.text", str(self.text)]
            chosen += ["--study.languages", *MANY] if study in _ABOUT_MANY else []
        if self.facts and study in _READ_FACTS:
            chosen += [_READ_FACTS[study], str(self.facts)]
        if study == "map_shared_neurons" and (self.facts or self.inferences):
            tasks = [str(folder) for folder in (self.facts, self.inferences) if folder]
            chosen += ["--tasks", *tasks, "--study.languages", *MANY_TASKS]
        return chosen


_ABOUT_MANY = ("deactivate_neurons", "detect_languages")
_READ_TEXT = (
    *_ABOUT_MANY,
    *("steer_language", "compare_methods", "patch_across_languages", "lens_by_language"),
)
_READ_FACTS = {
    "attribute_neurons": "--task",
    "patch_across_languages": "--facts",
    "lens_by_language": "--facts",
}
