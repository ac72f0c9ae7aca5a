"""Which recipe gives a small model language neurons that matter? One thing is changed at a time.

    python -m babel_training.search --text FOLDER      # 50 minutes on 2 cores; resumes

Reads   FOLDER/<language>.txt[.gz], as babel_training.train does
Writes  results/babel_training/search/<variant>/, results/babel_training/search/table.csv

Every variant is a model of about a sixth of Babel's size, trained on the same number of tokens. Its
language neurons are found and switched off as Babel's are (babel_training.measure). The table gives
the rise of the loss in their own language, in the others, and with random neurons off.
"""

import csv
import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

import interp
from babel_training import measure, recipe, train
from babel_training.knowledge import BABEL, LANGUAGES
from interp.results import artifacts

ROUND = replace(recipe.Config().rounds[0], steps=700, fact_share=0.0)
SMALL = replace(
    recipe.PRESETS["cpu"][1],
    vocabulary=8192,
    d_model=128,
    d_mlp=1024,
    n_layers=4,
    n_heads=2,
    rounds=(ROUND,),
    late_shares=(),
    checkpoint_every=350,
)
VARIANTS = {
    "base": SMALL,
    "SiLU": replace(SMALL, activation="silu"),
    "half the neurons": replace(SMALL, d_mlp=512),
    "twice the neurons": replace(SMALL, d_mlp=2048),
    "languages equal": replace(SMALL, dominant_share=1 / 6),
    "English 50 %": replace(SMALL, dominant_share=0.5),
    "rows of 256 tokens": replace(SMALL, length=256, rows=16),
    "half the rows are facts": replace(
        SMALL, rounds=(replace(ROUND, fact_share=0.5),), facts_from=100
    ),
    "half as long": replace(SMALL, rounds=(replace(ROUND, steps=350),)),
}


@dataclass(frozen=True)
class Config:
    """What to compare, and on what."""

    text: Path
    """Folder of <language>.txt or .txt.gz."""

    only: tuple[str, ...] = tuple(VARIANTS)
    """Variants to run; the table also keeps those measured before."""

    n_items: int = 200
    """Parallel items read under each intervention."""

    n_tokens: int = 40_000
    """Tokens per language for the firing rates."""

    out: Path = Path("results/babel_training/search")
    """Folder for the models and the table."""


def folder_of(out: Path, variant: str) -> Path:
    return out / variant.replace(" ", "_").replace("%", "percent")


def share_text(base: Path, folder: Path) -> None:
    """Give a variant the tokenized text of the base, which is the same for all."""
    if folder != base and base.exists() and not folder.exists():
        folder.mkdir(parents=True)
        shutil.copytree(base / "tokenizer", folder / "tokenizer")
        for path in base.glob("tokens-*.npy"):
            (folder / path.name).hardlink_to(path)


def run(variant: str, config: Config) -> dict[str, float]:
    """The measurements of a variant, trained and measured unless they are stored."""
    folder = folder_of(config.out, variant)
    path = folder / "measured.json"
    if path.exists():
        return json.loads(path.read_text())
    if not (folder / "model").exists():
        share_text(folder_of(config.out, "base"), folder)
        train.train(replace(VARIANTS[variant], text=config.text), folder)
    model = interp.load(folder / "model")
    items = {
        code: (BABEL / "parallel" / f"{code}.txt").read_text("utf-8").splitlines()[: config.n_items]
        for code in LANGUAGES
    }
    texts = {code: measure.running_text(lines) for code, lines in items.items()}
    settings = measure.Config(train=config.text, n_tokens=config.n_tokens)
    effects = measure.measure_neurons(model, settings, texts, measure.FRACTION)
    n = len(LANGUAGES)
    rise = effects["rise"]
    own = [row[index] for index, row in enumerate(rise)]
    other = [sum(row) - row[index] for index, row in enumerate(rise)]
    random = [sorted(draws)[len(draws) // 2] for draws in effects["random"]]
    bits = [measure.bits_per_byte(model, texts[code]) for code in LANGUAGES]
    row = {
        "bits per byte": sum(bits) / n,
        "own language": sum(own) / n,
        "other languages": sum(other) / (n * (n - 1)),
        "random neurons": sum(random) / n,
        "rows led by their own": sum(max(row) == row[index] for index, row in enumerate(rise)),
        "neurons per language": sum(effects["counts"].values()) / n,
    }
    artifacts.write_text(path, json.dumps(row, indent=1))
    return row


def main(config: Config) -> None:
    if unknown := set(config.only) - VARIANTS.keys():
        raise SystemExit(f"{', '.join(unknown)}: not among {', '.join(VARIANTS)}.")
    rows = {
        variant: run(variant, config)
        for variant in VARIANTS
        if variant in config.only or (folder_of(config.out, variant) / "measured.json").exists()
    }
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["variant", *next(iter(rows.values()))])
    for variant, row in rows.items():
        writer.writerow([variant, *(f"{value:.4g}" for value in row.values())])
    artifacts.write_text(config.out / "table.csv", buffer.getvalue())
    print(buffer.getvalue())


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
