"""The subcommands that publish results on the Hugging Face hub, and read them: push, pull."""

from dataclasses import dataclass
from pathlib import Path

import interp
from interp.commands.common import say
from interp.commands.options import Positional
from interp.runs.refusals import check_exists


@dataclass(frozen=True)
class Push:
    """Publish a run, selection, page, adapter or checkpoint on the hub.

    A card is generated, with model, text, settings and how to load it. Publishing needs a token
    (`hf auth login`); folders that the provenance names are published with it.

        interp push results/demo/neurons.json me/babel-neurons --license cc-by-4.0
    """

    path: Positional[Path]
    """Folder of a run, adapter or checkpoint; .json; .html."""

    repo: Positional[str]
    """name/repository; it is made if it does not exist."""

    license: str | None = None
    """Of what is published; a model's card names its source's."""

    note: str = ""
    """A paragraph for the card."""

    private: bool = False
    """Make a private repository."""

    def run(self) -> None:
        check_exists(self.path)
        address = interp.reports.push_to_hub(
            self.path, self.repo, license=self.license, note=self.note, private=self.private
        )
        say(f"{self.path} is published: {address}")


@dataclass(frozen=True)
class Pull:
    """Download what `interp push` published, and check it.

    interp pull me/babel-neurons --out results/theirs
    """

    repo: Positional[str]
    """name/repository."""

    out: Path | None = None
    """Folder for the files; by default the hub's cache."""

    revision: str | None = None
    """Branch, tag or commit; by default the newest."""

    def run(self) -> None:
        folder = interp.reports.from_hub(self.repo, revision=self.revision, folder=self.out)
        say(f"{self.repo} is in {folder}; every file has its checksum.")
