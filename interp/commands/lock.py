"""The subcommand that keeps a chat model's answers in a language: lock."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interp
from interp.commands.common import ModelChoice, goes_ahead, open_model, save_table, say
from interp.commands.forecasts import of_lock
from interp.commands.options import Labels, Positional
from interp.results.display import counted
from interp.results.words import Bos
from interp.runs.refusals import check_exists
from interp.text.sources import check_text, numbered_lines


@dataclass(frozen=True)
class Lock:
    """Switch off the fewest neurons that keep answers in a language.

    Half of the prompts are searched for neurons that speak for the wrong language where answers
    leave theirs; the other half, text and tasks say what the edit is worth and what it costs. Run
    it again to resume.

        printf "%s\\n" "The train is" "My dog is" "In the city" > prompts.txt
        interp lock prompts.txt babel --language de --out results/lock
    """

    prompts: Positional[Path]
    """A .txt, one prompt a line."""

    choice: ModelChoice
    """The model."""

    language: str
    """Language that answers should be in."""

    out: Path
    """Folder for the tables and the adapter."""

    chat: bool = False
    """Put prompts into the model's chat template."""

    text: str | None = None
    """Text to price the edit on: a folder of <label>.txt, or babel."""

    labels: Labels = ()
    """Labels of that text; by default all that it has."""

    tokens: int = 20_000
    """Tokens of it per label."""

    tasks: tuple[str, ...] = ()
    """Multiple-choice tasks: files or folders with <language>.jsonl."""

    max_new_tokens: int = 64
    """Tokens per answer, at most."""

    candidates: int = 200
    """Neurons that get a what-if."""

    most: int = 128
    """Neurons to switch off, at most."""

    seed: int = 0
    """Says which half is searched."""

    bos: Bos = "auto"
    """auto, none, document, block: what begins a prompt."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> "interp.evaluations.LanguageLock | None":
        interp.results.artifacts.refuse_existing(self.out / "price.csv", "file")
        self.check_language()
        if self.text is not None:
            check_text(self.text, self.labels or interp.text.labels_in(self.text))
        lines = self.lines()
        model, _ = open_model(self.choice, self.choice.memory)
        prompts = [interp.text.chat_prompt(model, line) if self.chat else line for line in lines]
        search = interp.evaluations.LockSearch(candidates=self.candidates, most=self.most)
        corpora = self.corpora(model)
        tasks = [interp.read_task(task, self.language) for task in self.tasks]
        pieces, n_new = self.out / "pieces", self.max_new_tokens
        if not goes_ahead(
            lambda: of_lock(model, prompts, search, n_new, self.bos, corpora, tasks, pieces),
            "fewer prompts or --candidates, or shorter --max-new-tokens. It can be interrupted and "
            "resumed at any time.",
            self.dry_run,
        ):
            return None
        lock = interp.evaluations.lock_language(
            model,
            prompts,
            self.language,
            text=corpora,
            tasks=tasks,
            search=search,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            bos=self.bos,
            out=pieces,
        )
        self.save(lock, model)
        say(f"{lock!r}.")
        if not lock.gain.low > 0:
            say(f"Not shown to help: the share of answers that stay changes by {lock.gain}.")
        say(lock.to_frame().to_string(index=False, float_format="%.3f"))
        if lock.found:
            say(f"The adapter is in {self.out / 'adapter'}, the answers in {self.out}.")
        else:
            say(
                f"No adapter is written: 1 to {max(lock.tried)} neurons off keep no more of the "
                f"searched answers in {self.language}. Give more prompts on which answers leave it."
            )
        return lock

    def save(self, lock: "interp.evaluations.LanguageLock", model: "interp.NeuronModel") -> None:
        """Write the adapter and the tables, price.csv last: with it, nothing is left to do."""
        adapter = self.out / "adapter"
        if lock.found and not adapter.exists():
            lock.change.to_lora(model, adapter, note=f"It keeps answers in {self.language}.")
        for name, confusion in lock.confusion.items():
            save_table(confusion.to_frame(), self.out / f"{name.replace(' ', '-')}.csv")
        save_table(lock.to_frame(), self.out / "price.csv")
        shutil.rmtree(self.out / "pieces")

    def lines(self) -> list[str]:
        """The prompts; too few are refused before a model is loaded."""
        check_exists(self.prompts)
        if self.prompts.is_dir():
            raise ValueError(f"{self.prompts} is a folder: give a .txt with one prompt a line.")
        lines = [line for _, line in numbered_lines(self.prompts) if line.strip()]
        if len(lines) < 3:
            raise ValueError(
                f"{self.prompts} holds {counted(len(lines), 'prompt')}: half are searched, and two "
                "or more others measured, so give three or more, one a line."
            )
        return lines

    def check_language(self) -> None:
        """Refuse a language that answers cannot be judged in, before a model is loaded."""
        from interp.text.language_id import detectable
        from interp.text.languages import LANGUAGES

        if detectable([self.language]):
            return
        names = [code for code, known in LANGUAGES.items() if known.name == self.language.title()]
        perhaps = names[0] if names else "de, zh or sw"
        raise ValueError(
            f"--language is {self.language!r}, and the detector cannot recognize such answers: "
            f"give the tag of one of the 140 languages that it knows, such as {perhaps}."
        )

    def corpora(self, model: "interp.NeuronModel") -> "interp.Corpora | None":
        if self.text is None:
            return None
        from interp.text.reading import settings_of_ours

        labels = self.labels or interp.text.labels_in(self.text)
        block = min(256, model.max_length)
        settings: dict[str, Any] = {"block_length": block, "tokens": self.tokens, "n_shards": 10}
        with settings_of_ours():
            return interp.read_corpora(self.text, labels, model, bos=self.bos, **settings)
