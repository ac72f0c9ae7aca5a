"""The subcommand that writes the neuron page: page."""

from dataclasses import dataclass
from pathlib import Path

import interp
from interp.commands.common import goes_ahead, say
from interp.commands.effects import open_run, read_selection
from interp.commands.find import reopen
from interp.commands.forecasts import of_page
from interp.commands.options import Positional
from interp.runs.refusals import json_object


@dataclass(frozen=True)
class Page:
    """Write an HTML page that shows what each selected neuron fires on.

    The page shows the languages side by side and works offline. It is one file, or a folder for
    more than 2000 neurons. The run must have kept contexts (`interp collect --contexts 8`).

        interp page results/demo
        interp page results/demo --selections results/demo/neurons-lap.json
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    selections: tuple[Path, ...] = ()
    """Selections from `interp find`; by default neurons.json in the run's folder."""

    out: Path | None = None
    """The page; by default neurons.html in the run's folder."""

    model: str | None = None
    """Where the run's model is now, if it was moved."""

    before: int = 24
    """Tokens shown before each firing token."""

    after: int = 12
    """Tokens shown after it."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> None:
        run = open_run(self.run_folder)
        stats, contexts = run.firing, run.contexts
        chosen = self.selections or (self.run_folder,)
        selections = {_name(path): read_selection(path) for path in chosen}
        if len(selections) < len(chosen):
            raise ValueError(
                f"Two of the selections have the same name ({', '.join(map(_name, chosen))}): "
                "rename one of the files."
            )
        model = reopen(self.run_folder, self.model)
        if not goes_ahead(
            lambda: of_page(model, contexts, list(selections.values())),
            "fewer neurons (interp find --fraction).",
            self.dry_run,
        ):
            return
        page = interp.neuron_page(
            model, stats, selections, contexts, before=self.before, after=self.after
        )
        out = page.save(self.out or self.run_folder / "neurons.html")
        say(f"{page.n_neurons:,} neurons are on the page. Open it in a browser: {out}")


def _name(path: Path) -> str:
    """The name of a selection on the page: its file's, or its method's for neurons.json."""
    file = path / "neurons.json" if path.is_dir() else path
    if file.stem != "neurons":
        return file.stem.removeprefix("neurons-")
    stored = json_object(file)  # empty if it is damaged, which is said by its reader
    return stored.get("provenance", {}).get("settings", {}).get("method", file.stem)
