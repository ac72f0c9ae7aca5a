"""`interp demo`: the whole workflow on the shipped model, offline."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.commands.answers import is_sound
from interp.commands.collect import Collect
from interp.commands.common import ModelChoice, say
from interp.commands.crossing import Lens, Patch
from interp.commands.doctor import Doctor
from interp.commands.effects import Deactivate
from interp.commands.find import Find
from interp.commands.page import Page
from interp.commands.report import Report
from interp.commands.steer import EditTowards, Steer
from interp.commands.tasks import Attribute, Share

TASK = "babel/fact_completion"


@dataclass(frozen=True)
class Demo:
    """Run the whole workflow on the shipped model; takes minutes.

    It collects, finds, deactivates, steers, shares, attributes and patches, and ends with a page
    of the neurons and a report. It needs no network. To resume after an interruption, run it again.

        interp demo --out results/demo
    """

    out: Path = Path("results/demo")
    """Folder for all results."""

    def run(self) -> None:
        for number, (question, command) in enumerate(self.steps(), start=1):
            say(f"\n{number}  {question}\n")
            if not is_sound(command.run()):
                raise SystemExit(1)
        say(f"\nOpen {self.out / 'report.html'} first, then {self.out / 'neurons.html'}.")

    def steps(self) -> list[tuple[str, Any]]:
        """Questions and the subcommands that answer them; each can also be run on its own."""
        # Most CPUs are several times faster in float32 than in the 16 bits of the checkpoint.
        # Babel's tokenizer puts nothing before a text, but its texts began with <s> in training.
        babel = ModelChoice(dtype="float32")
        return [
            ("Do babel's hooks read and edit the right activations?", Doctor(babel)),
            *self._language_neurons(babel),
            *self._steering(babel),
            *self._tasks(babel),
            ("What does each of these neurons fire on?", Page(self.out)),
            ("All of this in one file.", Report((self.out,), out=self.out / "report.html")),
        ]

    def _language_neurons(self, babel: ModelChoice) -> list[tuple[str, Any]]:
        out = self.out
        return [
            (
                "On how many tokens of each language does every neuron fire?",
                Collect(babel, out=out, moments=True, contexts=8, block_length=64, split="train"),
            ),
            ("Which neurons fire for one language or two?", Find(out, fraction=0.03)),
            (
                "With a language's neurons off, which language suffers?",
                Deactivate(out, ModelChoice(), tokens=2560, n_draws=1),
            ),
        ]

    def _steering(self, babel: ModelChoice) -> list[tuple[str, Any]]:
        folder = self.out / "sentences"
        return [
            (
                "What do the linear outputs average on the sentences of each language?",
                Collect(
                    babel,
                    out=folder,
                    sentences=("pre", "pre_linear", "mlp_out"),
                    n_sentences=300,
                ),
            ),
            (
                "Which of these units tell a language from the others?",
                Find(folder, method="precision", n=2000),
            ),
            (
                "With these held at their medians, which language does the model write?",
                Steer(
                    folder / "neurons-precision.json",
                    ModelChoice(),
                    to=("de", "ja"),
                    how=EditTowards(edit="median"),
                    n=20,
                    max_new_tokens=40,
                    bos="document",
                    out=self.out / "steer",
                ),
            ),
        ]

    def _tasks(self, babel: ModelChoice) -> list[tuple[str, Any]]:
        patched = ("Der Tag nach Montag ist", "The day after Thursday is")
        return [
            (
                "Which neurons fire for the same fact in all languages?",
                Share(TASK, babel, bos="document", out=self.out / "share"),
            ),
            (
                "Which of them carry the answer?",
                Attribute(TASK, babel, items=20, bos="document", out=self.out / "attribute"),
            ),
            (
                "In which layer does an answer move from one prompt to another?",
                Patch(
                    *patched,
                    babel,
                    answers=(" Friday", " Tuesday", " Dienstag"),
                    layers="from",
                    texts=("Montag", "Thursday"),
                    bos="document",
                    out=self.out / "patch.safetensors",
                ),
            ),
            (
                "Which language does each layer predict?",
                Lens(
                    babel, languages=("de", "en"), bos="document", out=self.out / "lens.safetensors"
                ),
            ),
        ]
