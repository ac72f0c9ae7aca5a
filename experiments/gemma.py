"""The presets `gemma`: the studies on Gemma 3 270M, a pretrained model that pip installs.

    make real                                               # text and tasks of this project
    make real TEXT=FOLDER FACTS=FOLDER INFERENCES=FOLDER    # other ones, in more languages
    make real PAIRS=FOLDER EDITS=FOLDER                     # other translations and edited facts
    make real TOPICS=FOLDER                                 # other sentences with a topic

Text is <language>.txt, one sentence a line; tasks are <language>.jsonl (`interp.read_task`).
Models are read in float32. `--study.dtype bfloat16` is three times as fast on a CPU that has it in
hardware (AVX-512 BF16 or AMX), and a hundred times slower on one that has not.
"""

from dataclasses import dataclass
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
    out=Path("results/study/gemma/{model}-{languages}"),
)
"""The six languages of the shipped model. Its parallel sentences have about half these tokens. The
studies share what they count."""

MANY = ("en", "de", "fr", "es", "zh", "ja", "ru", "ar", "hi", "vi", "sw", "ko")
"""Languages of the studies about many, on other text than the project's own."""

SCRIPTS = ("en", "de", "ru", "ar", "hi", "zh", "ja", "el", "ko")
"""Two languages in Latin letters, and seven that can be romanised."""

MANY_TASKS = ("en", "de", "fr", "es", "zh", "ru", "ar", "hi", "vi", "th", "tr", "el")
"""The same for tasks: those that both BMLAMA and XNLI have."""


def preset(**differences: Any) -> Preset:
    """The `gemma` preset of a study."""
    return Preset("Gemma 3 270M, a pretrained model that `make real` fetches.", STUDY, differences)


@dataclass(frozen=True)
class Data:
    """Text and tasks other than those of this project."""

    text: Path | None = None
    """Folder of <language>.txt."""

    facts: Path | None = None
    """Folder of <language>.jsonl with facts, such as BMLAMA."""

    inferences: Path | None = None
    """Folder of <language>.jsonl with inferences, such as XNLI."""

    pairs: Path | None = None
    """Folder of <set>_en_<language>.jsonl with translations, such as those of Kojima et al."""

    edits: Path | None = None
    """Folder of <language>.jsonl with edited facts, such as MzsRE."""

    topics: Path | None = None
    """Folder of <language>.txt and meta.tsv with the topic of each line, such as SIB-200."""

    def options(self, study: str) -> list[str]:
        """Options of a study's command that make it read these."""
        chosen: list[str] = []
        if self.text and study in _READ_TEXT:
            chosen += ["--study.text", str(self.text)]
            languages = _ABOUT_MANY.get(study)
            chosen += ["--study.languages", *languages] if languages else []
        if self.facts and study in _READ_FACTS:
            chosen += [_READ_FACTS[study], str(self.facts)]
        if study == "map_shared_neurons" and (self.facts or self.inferences):
            tasks = [str(folder) for folder in (self.facts, self.inferences) if folder]
            chosen += ["--tasks", *tasks, "--study.languages", *MANY_TASKS]
        if study == "steer_translation" and self.pairs:
            chosen += ["--pairs", str(self.pairs)]
        if study == "edit_knowledge" and self.edits:
            chosen += ["--edits", str(self.edits)]
        if study == "compare_labels" and self.topics:
            chosen += ["--topics", str(self.topics)]
        return chosen


_ABOUT_MANY = {"detect_languages": MANY, "explain_language": SCRIPTS}
# A matrix of twelve languages takes four hours of a core.
_READ_TEXT = (
    *_ABOUT_MANY,
    *("deactivate_neurons", "steer_language", "steer_translation", "compare_methods"),
    *("patch_across_languages", "lens_by_language", "compare_readings"),
)
_READ_FACTS = {
    "attribute_neurons": "--task",
    "patch_across_languages": "--facts",
    "lens_by_language": "--facts",
}
