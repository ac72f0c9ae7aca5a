"""In which language does each layer speak, and which language do language neurons promote?

    python -m experiments.lens_by_language tiny      # a minute: does every part run?
    python -m experiments.lens_by_language babel     # minutes on 2 cores
    python -m experiments.lens_by_language paper --study.model NAME --study.text FOLDER

Reads   a model, its facts in several languages, and text of them
Writes  results/lens_by_language/<preset>/lens.csv (the answer in the prompt's language and in the
        pivot's, by layer), top.csv (whose tokens each layer would say), promoted.csv (whose tokens
        a language's neurons write, beside as many random neurons of the same layers)

If a model thinks in its pivot language (Wendler et al., 2024), the answer's pivot word is likely in
middle layers, whatever the language of the prompt, and its own word only in the last. Facts of
which the two words may begin with the same token cannot tell; they are left out and counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro
from jaxtyping import Float64
from torch import Tensor

import interp
from experiments.study import Study
from interp import artifacts
from interp.evaluations.task_files import align, read_task
from interp.evaluations.writing import start_ids
from interp.lens import (
    Lens,
    Question,
    languages_of,
    logit_lens,
    promoted_languages,
    token_languages,
)
from interp.uncertainty import mean_over_examples


@dataclass(frozen=True)
class Config:
    """What is read."""

    study: Study
    """Model and text."""

    facts: str = "babel"
    """"babel", or a folder of <language>.jsonl with prompts, options and answers."""

    pivot: str = "en"
    """The language that layers may speak instead of the prompt's."""

    fraction: float = 0.01
    """Of all neurons, selected by LAPE."""

    n_facts: int | None = None
    """Facts of each language, from the first; None: all."""

    n_draws: int = 5
    """Random selections beside the language neurons."""

    out: Path = Path("results/lens_by_language/babel")
    """Folder for the tables."""


PRESETS = {
    "tiny": (
        "Every part once, on the shipped model: a minute.",
        Config(
            Study(languages=("en", "ja"), tokens=4000, out=Path("results/lens_by_language/tiny")),
            n_facts=30,
            n_draws=1,
            out=Path("results/lens_by_language/tiny"),
        ),
    ),
    "babel": (
        "The shipped model, its six languages.",
        Config(Study(out=Path("results/lens_by_language/babel"))),
    ),
    "paper": (
        "A model, text and facts of your own.",
        Config(
            Study(out=Path("results/lens_by_language/paper"), tokens=500_000),
            out=Path("results/lens_by_language/paper"),
        ),
    ),
}


def questions(
    model: interp.NeuronModel, config: Config, code: str
) -> tuple[list[Question], list[bool]]:
    """Facts asked in a language, with the answer in it and in the pivot, and which were untold."""
    codes = [code, config.pivot]
    asked, pivot = align([read_task(config.facts, each) for each in codes])
    found, held_out = [], []
    for item, other in list(zip(asked.items, pivot.items, strict=True))[: config.n_facts]:
        ids = [*start_ids(model, "auto"), *model.encode(item.prompt)]
        words = [each.options[each.answer].strip(" .。」") for each in (item, other)]
        found.append(Question(ids, dict(zip(codes, words, strict=True))))
        held_out.append(item.held_out)
    return found, held_out


def top_rows(
    lens: Lens, shares: Float64[Tensor, "language vocab"], asked_in: str, codes: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """How each layer's most likely tokens divide among languages."""
    mean = mean_over_examples(languages_of(lens.top, shares).nan_to_num(1 / len(codes)))
    for layer in range(lens.top.shape[1]):
        for column, code in enumerate(codes):
            yield {
                "asked_in": asked_in,
                "layer": layer,
                "language": code,
                "share": mean.value[layer, column].item(),
                "low": mean.low[layer, column].item(),
                "high": mean.high[layer, column].item(),
            }


def promoted_rows(
    found: Float64[Tensor, "owner layer language"],
    owners: tuple[str, ...],
    codes: tuple[str, ...],
    name: str,
) -> Iterator[dict[str, Any]]:
    for row, owner in enumerate(owners):
        for layer in range(found.shape[1]):
            for column, code in enumerate(codes):
                share = found[row, layer, column].item()
                yield {"neurons": name, "owner": owner, "layer": layer, "language": code} | {
                    "share": share
                }


def main(config: Config) -> None:
    study, codes = config.study, config.study.languages
    model = study.open()
    stats, moments = study.statistics(model)
    shares = token_languages(study.read(model, "held_out"), model)
    curves, tops = [], []
    for code in codes:
        if code == config.pivot:
            continue
        asked, held_out = questions(model, config, code)
        for name, chosen in (
            ("all", asked),
            ("held_out", [each for each, out in zip(asked, held_out, strict=True) if out]),
        ):
            try:
                lens = logit_lens(model, chosen)
            except ValueError as error:  # no fact is left, or none was held out
                print(f"{code}, {name} facts: {error}", flush=True)
                continue
            if len(lens.kept) < 2:
                continue
            curves.append(lens.to_frame().assign(asked_in=code, facts=name))
            if name == "all":
                lens.save(config.out / f"lens_{code}.safetensors", artifacts.provenance())
                tops += top_rows(lens, shares, code, codes)
    selection = interp.select_by_entropy(stats, config.fraction)
    found = promoted_languages(model, selection, shares, moments)
    promoted = list(promoted_rows(found, codes, codes, "language neurons"))
    generator = torch.Generator().manual_seed(study.seed)
    for draw in range(config.n_draws):
        drawn = selection.random_like(generator, exclude=selection.union())
        found = promoted_languages(model, drawn, shares, moments)
        promoted += promoted_rows(found, codes, codes, f"random neurons {draw}")
    frames = {"lens": pd.concat(curves), "top": pd.DataFrame(tops)} if curves else {}
    for name, frame in (frames | {"promoted": pd.DataFrame(promoted)}).items():
        artifacts.write_text(config.out / f"{name}.csv", frame.to_csv(index=False))
    if curves:
        shown = frames["lens"].query("facts == 'all'")
        shown = shown.assign(
            word=(shown["asked_in"] == shown["language"]).map(lambda own: "own" if own else "pivot")
        )
        wide = shown.pivot_table(index=["asked_in", "word"], columns="layer", values="probability")
        print(
            f"Probability of the answer's word, by layer\n\n{wide.to_string(float_format='%.3f')}\n"
        )
    own = pd.DataFrame(promoted).query("owner == language")
    own = own.assign(neurons=own["neurons"].str.replace(r" \d+$", "", regex=True))
    wide = own.pivot_table(index=["owner", "neurons"], columns="layer", values="share")
    print("Share of the own language in what neurons promote, by layer\n")
    print(wide.to_string(float_format="%.2f"))


if __name__ == "__main__":
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: text for name, (text, _) in PRESETS.items()},
    )
    main(tyro.cli(parsed, description=__doc__))
