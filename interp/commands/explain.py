"""The subcommand that asks what a selection follows: explain."""

from dataclasses import dataclass
from pathlib import Path

import interp
from interp.commands.common import goes_ahead, say
from interp.commands.effects import open_run
from interp.commands.forecasts import of_selecting
from interp.commands.options import Positional


@dataclass(frozen=True)
class Explain:
    """Ask if neurons follow a language, or its script, order or words.

    It needs a run that read rewritten text too: `interp collect --counterfactuals`. It selects the
    neurons of each label by LAPE on the text as it is, and prints how many stay when something is
    taken from that text.

        interp collect babel --counterfactuals --out runs/why
        interp explain runs/why
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    fraction: float = 0.01
    """Share of all neurons to select."""

    busy_quantile: float = 0.95
    """A neuron belongs to a label where it fires more than this share of all rates."""

    out: Path | None = None
    """Folder for explanation.csv, its figure, and beyond_script.json; by default the run's."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> "interp.selections.Explanation | None":
        run = open_run(self.run_folder)
        stats, out = run.firing, self.out or self.run_folder
        settings = {"fraction": self.fraction, "busy_quantile": self.busy_quantile}
        if not goes_ahead(
            lambda: of_selecting(
                stats, lambda part: interp.select_by_entropy(part, **settings), stats.n_shards + 1
            ),
            "fewer shards or labels (interp collect --n-shards, --languages).",
            self.dry_run,
        ):
            return None
        explanation = interp.selections.explain(stats, **settings)
        origin = interp.results.artifacts.provenance(run=run.provenance, **settings)
        explanation.save(out / "explanation.safetensors", origin)
        interp.plots.save(explanation.to_frame(), out / "explanation")
        say(explanation.sentences())
        say(f"The shares are in {out / 'explanation.csv'}, their figure beside it.")
        if "script" in explanation.aspects:
            beyond = interp.selections.beyond_script(stats, **settings)
            beyond.to_json(out / "beyond_script.json", origin)
            counts = ", ".join(f"{label} {n:,}" for label, n in beyond.counts().items())
            say(f"Neurons kept in both scripts ({counts}) are in {out / 'beyond_script.json'}.")
        return explanation
