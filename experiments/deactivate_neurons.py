"""A language's neurons off, every language read: how much worse, and for whom?

    python -m experiments.deactivate_neurons tiny     # seconds
    python -m experiments.deactivate_neurons babel    # 10 minutes on 2 cores
    python -m experiments.deactivate_neurons paper --study.model NAME --study.text FOLDER

Reads   a model, and text of its languages: neurons found on one half, losses read on the other
Writes  results/deactivate_neurons/<preset>/<fraction>/matrix.safetensors, matrix.csv; table.csv

Tang et al. (2024) find that perplexity rises most on the language whose neurons are off. Beside
each increase stand its interval over documents and what as many random neurons per layer do.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import tyro

import interp
from experiments.study import Study
from interp import artifacts
from interp.commands.effects import show_matrix


@dataclass(frozen=True)
class Config:
    """What is switched off."""

    study: Study
    """Model and text."""

    fractions: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05)
    """Of all neurons, selected by LAPE."""

    n_draws: int = 2
    """Random sets of as many neurons per layer."""

    out: Path = Path("results/deactivate_neurons/babel")
    """Folder for the matrices."""


PRESETS = {
    "tiny": (
        "Two languages, little text: seconds.",
        Config(
            Study(
                languages=("de", "ja"),
                tokens=4000,
                n_shards=4,
                out=Path("results/deactivate_neurons/tiny"),
            ),
            fractions=(0.03,),
            n_draws=1,
            out=Path("results/deactivate_neurons/tiny"),
        ),
    ),
    "babel": (
        "The shipped model on its parallel sentences: 10 minutes on 2 cores.",
        Config(Study(out=Path("results/deactivate_neurons/babel"))),
    ),
    "paper": (
        "A model and text of your own, as in the paper: one neuron in a hundred.",
        Config(
            Study(tokens=1_000_000, out=Path("results/deactivate_neurons/paper")),
            fractions=(0.01,),
            out=Path("results/deactivate_neurons/paper"),
        ),
    ),
}


def main(config: Config) -> None:
    study = config.study
    model = study.open()
    stats, _ = study.statistics(model)
    reading = study.read(model, "held_out")
    rows = []
    for fraction in config.fractions:
        matrix = interp.perplexity_matrix(
            model,
            interp.select_by_entropy(stats, fraction),
            reading,
            n_draws=config.n_draws,
            generator=torch.Generator().manual_seed(study.seed),
            out=config.out / f"{fraction:g}",
        )
        frame = matrix.to_frame()
        artifacts.write_text(config.out / f"{fraction:g}" / "matrix.csv", frame.to_csv(index=False))
        print(f"\n{fraction:.1%} of all neurons, found by LAPE\n", flush=True)
        show_matrix(matrix)
        found, excess = matrix.diagonal(), matrix.excess
        for place, code in enumerate(found.languages):
            row, column = matrix.off.index(code), matrix.languages.index(code)
            rows.append(
                {
                    "fraction": fraction,
                    "language": code,
                    "neurons": matrix.neurons[row],
                    "own_minus_others": found.own_minus_others.value[place].item(),
                    "low": found.own_minus_others.low[place].item(),
                    "high": found.own_minus_others.high[place].item(),
                    "beyond_random": excess.value[row, column].item(),
                    "largest_in_row": code in found.largest_in_row,
                    "p_of_all": found.test.p_value,
                }
            )
    artifacts.write_text(config.out / "table.csv", pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: text for name, (text, _) in PRESETS.items()},
    )
    main(tyro.cli(parsed, description=__doc__))
