"""The subcommand that says which experts of a mixture are chosen for which label: routing."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import interp
from interp.commands.common import goes_ahead, save_table, say, say_table, seeded
from interp.commands.effects import open_run
from interp.commands.forecasts import of_routing
from interp.commands.options import Positional

if TYPE_CHECKING:
    import pandas

    from interp.plots.style import Table


@dataclass(frozen=True)
class Routing:
    """Measure how far labels differ in the experts chosen for them.

    Layer by layer, beside labels that are drawn anew for all shards. The run must be of a mixture
    of experts. It also writes experts.csv: how often each expert is chosen for each label.

        interp routing runs/mixture
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    draws: int = 99
    """How often labels are drawn anew; the smallest p is 1 / (draws + 1)."""

    seed: int = 0
    """Seeds the draws."""

    out: Path | None = None
    """File for the table (.csv); by default routing.csv in the run's folder."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> "pandas.DataFrame | None":
        stats = open_run(self.run_folder).firing
        if stats.n_shards < 2:
            raise ValueError(
                "The run has only one shard, so differences have no intervals: collect with "
                "--n-shards 20."
            )
        if len(stats.languages) < 2:
            raise ValueError(
                f"The run has one label alone, {', '.join(stats.languages)}: collect two or more."
            )
        routing = interp.scores.routing_of(stats)
        if not goes_ahead(lambda: of_routing(routing, self.draws), "fewer --draws.", self.dry_run):
            return None
        table = routing.layer_frame(seeded(self.seed), self.draws)
        show(table)
        if sum(not math.isnan(value) for value in table["divergence"]) >= 3:
            depth = routing.ends_less_middle
            say(
                f"\nThe first and last third of the layers differ by at least {depth.value:.4f} "
                f"nats more than the middle\n({depth.low:.4f} to {depth.high:.4f}); above zero, "
                "differences are a U over depth."
            )
        out = self.out or self.run_folder / "routing.csv"
        save_table(table, out)
        save_table(routing.expert_frame(), out.with_name("experts.csv"))
        say(f"The table is in {out}, and the shares of experts in {out.with_name('experts.csv')}.")
        return table


def show(table: "Table") -> None:
    """Layers with experts: entropy in nats, differences with intervals, and the control."""
    rows = [["layer", "entropy", "difference", "95 % interval", "shuffled", "highest", "p"]]
    for row in table[table["divergence"].notna()].to_dict("records"):
        interval = f"{row['divergence_low']:.4f} to {row['divergence_high']:.4f}"
        control = f"{row['shuffled']:.4f}", f"{row['shuffled_highest']:.4f}"
        numbers = f"{row['entropy']:.3f}", f"{row['divergence']:.4f}", interval, *control
        rows.append([str(row["layer"]), *numbers, f"{row['p_value']:.2g}"])
    say_table(rows)
