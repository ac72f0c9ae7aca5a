"""What does it look like, in one figure and three numbers?

    python -m experiments.headline     # after draw_figures; changes README.md

Reads   figures/perplexity_matrix-gemma.csv and language_switching-gemma.csv, or else those of the
        shipped model
Writes  README.md, between <!-- headline --> and <!-- /headline -->
"""

from pathlib import Path

from benchmarks.markdown import with_blocks
from experiments.steering_claims import LAPE, RANDOM_NEURONS
from interp.plots.files import read_table
from interp.plots.style import Table
from interp.reports.findings import own_and_others
from interp.results import artifacts

ROOT = Path(__file__).parents[1]
MODELS = {
    "gemma": "Gemma 3 270M, a pretrained model,",
    "babel": "Babel, the model that comes with the package,",
}
"""Preset → its model in the headline; the first whose matrix is in figures/ gives it."""


def headline(figures: Path) -> str:
    """The matrix of neurons off by language read, and what its table and that of steering say."""
    preset = next(name for name in MODELS if (figures / f"perplexity_matrix-{name}.csv").is_file())
    table = read_table(figures / f"perplexity_matrix-{preset}.csv")
    own, others, random = own_and_others(table)
    return (
        "![Rise of the loss on every language with the neurons of one language off]"
        f"(figures/perplexity_matrix-{preset}.png)\n\n"
        f"In {MODELS[preset]} switching a language's neurons off (rows)\n"
        f"raises the loss on that language by **{own:.2g} nats** per token on average, on the "
        f"other languages by **{others:.2g}**;\n"
        f"as many random neurons off raise that language's by {random:.2g}."
        f"{steering(figures / f'language_switching-{preset}.csv')}"
    )


def steering(table: Path) -> str:
    """How often pushing neurons makes texts be in their language; empty without the table."""
    if not table.is_file():
        return ""
    ways: Table = read_table(table)
    pushed, random = (
        100 * ways.loc[ways["way"] == way, "rate"].mean() for way in (LAPE, RANDOM_NEURONS)
    )
    return (
        f" Pushed instead, the same neurons\nmake **{pushed:.0f} %** of texts come out in their "
        f"language, random neurons {random:.0f} %."
    )


def main(root: Path = ROOT) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    artifacts.write_text(
        root / "README.md", with_blocks(text, {"headline": headline(root / "figures")})
    )


if __name__ == "__main__":
    main()
