"""What does it look like, in one figure and two numbers?

    python -m experiments.headline     # after draw_figures; changes README.md

Reads   figures/perplexity_matrix-gemma.csv, or else that of the shipped model
Writes  README.md, between <!-- headline --> and <!-- /headline -->
"""

from pathlib import Path

from benchmarks.markdown import with_blocks
from interp.plots.files import read_table
from interp.results import artifacts
from interp.text.languages import label_name

ROOT = Path(__file__).parents[1]
MODELS = {
    "gemma": "Gemma 3 270M, a pretrained model,",
    "babel": "Babel, the model that comes with the package,",
}
"""Preset → its model in the headline; the first whose matrix is in figures/ gives it."""


def headline(figures: Path) -> str:
    """The matrix of neurons off by language read, and what its table says."""
    preset = next(name for name in MODELS if (figures / f"perplexity_matrix-{name}.csv").is_file())
    frame = read_table(figures / f"perplexity_matrix-{preset}.csv")
    edited = frame.loc[frame["off"] != "nothing"]
    own = edited["own"].astype(bool)
    most = edited.loc[own].nlargest(1, "increase").iloc[0]
    others = edited.loc[~own & (edited["off"] == most["off"])].nlargest(1, "increase").iloc[0]
    mean_own, mean_others = (edited.loc[where, "increase"].mean() for where in (own, ~own))
    return (
        "![Rise of the loss on every language with the neurons of one language off]"
        f"(figures/perplexity_matrix-{preset}.png)\n\n"
        f"In {MODELS[preset]} switching a language's neurons off (rows)\n"
        f"raises the loss on that language by **{mean_own:.2g} nats** per token on average, on the "
        f"other languages by **{mean_others:.2g}**.\n"
        f"The largest effect: {most['neurons']:.0f} neurons of {label_name(most['off'])} off cost "
        f"it {most['increase']:.2g} nats, {label_name(others['read'])} {others['increase']:.2g},\n"
        f"and as many random neurons cost it {most['random']:.2g}."
    )


def main(root: Path = ROOT) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    artifacts.write_text(
        root / "README.md", with_blocks(text, {"headline": headline(root / "figures")})
    )


if __name__ == "__main__":
    main()
