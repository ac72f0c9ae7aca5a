"""Which languages suffer when one language's neurons are switched off, and how much?

    python -m experiments.deactivate_neurons tiny     # seconds
    python -m experiments.deactivate_neurons babel    # 30 minutes on one core
    python -m experiments.deactivate_neurons gemma    # Gemma 3 270M, which `make real` installs
    python -m experiments.deactivate_neurons paper    # hours of a GPU; --study.model NAME

Reads   a model, and text of its languages: neurons are selected on one half, losses read on the
        other
Writes  results/deactivate_neurons/<preset>/<fraction>/matrix.safetensors, matrix.csv; table.csv,
        writing.csv, texts.csv (texts written with neurons off), claims.json

Tang et al. (2024) find that perplexity rises most on the language whose neurons are off, and that
the model no longer writes it well. Each increase has an interval over documents and two controls:
random neurons, as many per layer, and others of the same layers that fire nearly as often.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch

import interp
from experiments import deactivation_claims, gemma, papers, runner
from experiments.deactivation_claims import RANDOM
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.plots.style import Table
from interp.results.words import NOTHING


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is switched off."""

    fractions: tuple[float, ...] = (0.01, 0.03, 0.05)
    """Of all neurons, selected by LAPE."""

    tried: float = 0.03
    """The fraction that the claims use; for Babel that of its card, fixed beforehand."""

    n_draws: int = 2
    """Random sets of the same size per layer, at that fraction; none at the others. There, also one
    set of neurons that fire nearly as often."""

    n_texts: int = 16
    """Prompts of natural text per language, continued by the model."""

    begin: int = 8
    """Tokens per prompt."""

    max_new_tokens: int = 48
    """Tokens per continuation."""

    temperature: float = 0.8
    """Of sampling."""


PRESETS = {
    "tiny": Preset(
        "Two languages, little text: seconds.",
        Study(languages=("de", "ja"), tokens=4000, n_shards=4),
        {"fractions": (0.03,), "n_draws": 1, "n_texts": 3, "max_new_tokens": 16},
    ),
    "babel": Preset("The shipped model on its parallel sentences: 30 minutes on one core."),
    "gemma": gemma.preset(fractions=(0.003, 0.01, 0.03), tried=0.01, n_draws=1, n_texts=8),
    "paper": papers.preset(
        papers.TANG,
        "Wikipedia, 100 million tokens in each of 7 languages",
        7 * (1e8 + 22 * 2**20),
        fractions=(0.01,),
        tried=0.01,
    ),
}


# ---------------------------------------------------------------- writing


def beginnings(reading: interp.Corpora, model: interp.NeuronModel, config: Config) -> list[str]:
    """The first tokens of some rows of each language, language by language."""
    n = min(config.n_texts, *(len(rows.ids) for rows in reading.rows.values()))
    return [
        model.decode(ids[keep][: config.begin].tolist()).rstrip("\ufffd")
        for rows in reading.rows.values()
        for ids, keep in zip(rows.ids[:n], reading.keep(rows.ids[:n], rows.length[:n]), strict=True)
    ]


def written(
    model: interp.NeuronModel,
    selection: interp.NeuronSelection,
    drawn: interp.NeuronSelection,
    prompts: Sequence[str],
    config: Config,
) -> Table:
    """A row for each continuation: what was off, the prompt and its language, and the text.

    All prompts are continued with each language's neurons off; a language's own prompts also with
    as many random neurons off. A prompt has the same seed throughout.
    """
    codes, n = selection.languages, len(prompts) // len(selection.languages)

    def written_under(off: str, rows: range, change: interp.Change | None) -> Table:
        texts = interp.generated_languages(
            model,
            codes,
            {off: change},
            prompts=[prompts[row] for row in rows],
            n=1,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=config.study.seed + rows.start,
            bos=config.study.held_out_bos,
            progress=False,
        )[off]
        begun = [codes[row // n] for row in rows]
        return texts.texts_frame().assign(off=off, begun=begun, prompt=[row % n for row in rows])

    def switched_off(neurons: interp.NeuronSelection, code: str) -> interp.Change | None:
        return neurons.change(code, interp.deactivate) if neurons[code].any() else None

    rows = range(len(prompts))
    frames = [written_under(NOTHING, rows, None)]
    frames += [written_under(code, rows, switched_off(selection, code)) for code in codes]
    for number, code in enumerate(codes):
        own = range(number * n, (number + 1) * n)
        frames.append(written_under(RANDOM, own, switched_off(drawn, code)))
    return pd.concat(frames, ignore_index=True)


def writing_table(texts: Table) -> Table:
    """A row per prompt language and what was off: nothing, its own, another's or random neurons.

    `same`: share of texts identical to those with nothing off. One: the neurons do nothing.
    """
    whose = texts["off"].where(texts["off"].isin([NOTHING, RANDOM]), "another's")
    whose = whose.mask(texts["off"] == texts["begun"], "own")
    untouched = texts[texts["off"] == NOTHING].set_index(["begun", "prompt"])["text"]
    before = untouched.reindex(pd.MultiIndex.from_frame(texts[["begun", "prompt"]])).to_numpy()
    rows = texts.assign(
        off=whose,
        in_language=texts["language"] == texts["begun"],
        in_english=texts["language"] == "en",
        same=texts["text"] == before,
    )
    groups = rows.groupby(["begun", "off"], sort=False)
    columns = ["in_language", "in_english", "loss", "repetition", "same"]
    means = groups[columns].mean().assign(texts=groups.size())
    languages = texts["begun"].unique()
    return means.reindex(product(languages, [NOTHING, "own", "another's", RANDOM])).reset_index()


# ---------------------------------------------------------------- running


def rows_of(
    matrix: interp.evaluations.PerplexityMatrix, fraction: float
) -> Iterator[dict[str, Any]]:
    diagonal, excess = matrix.diagonal(), matrix.excess
    more = diagonal.own_minus_others
    for number, code in enumerate(diagonal.languages):
        row, column = matrix.off.index(code), matrix.languages.index(code)
        yield {
            "fraction": fraction,
            "language": code,
            "neurons": matrix.neurons[row],
            "own_minus_others": more.value[number].item(),
            "low": more.low[number].item(),
            "high": more.high[number].item(),
            "beyond_random": excess.value[row, column].item(),
            "beyond_alike": matrix.rate_excess.value[row, column].item(),
            "largest_in_row": code in diagonal.largest_in_row,
            "p_of_all": diagonal.test.p_value,
        }


def main(config: Config, record: Record) -> None:
    study = config.study
    if config.tried not in config.fractions:
        raise ValueError(f"The claims use the fraction {config.tried}: add it to the fractions.")
    model = record.open(study)
    stats, _ = study.statistics(model)
    reading = study.read(model, "held_out")
    matrices = {}
    for fraction in config.fractions:
        matrix = interp.perplexity_matrix(
            model,
            interp.select_by_entropy(stats, fraction),
            reading,
            n_draws=config.n_draws if fraction == config.tried else 0,
            rate=stats.rate if fraction == config.tried else None,
            generator=torch.Generator().manual_seed(study.seed),
            out=config.out / f"{fraction:g}",
        )
        record.tables({f"{fraction:g}/matrix": matrix.to_frame()})
        print(f"\n{fraction:.1%} of all neurons, selected by LAPE\n", flush=True)
        print(matrix.table())
        matrices[fraction] = matrix
    rows = [row for fraction, matrix in matrices.items() for row in rows_of(matrix, fraction)]
    tried = interp.select_by_entropy(stats, config.tried)
    generator = torch.Generator().manual_seed(study.seed)
    drawn = tried.random_like(generator, exclude=tried.union())
    texts = written(model, tried, drawn, beginnings(reading, model, config), config)
    writing = writing_table(texts)
    record.tables({"table": pd.DataFrame(rows), "texts": texts, "writing": writing})
    print(f"\n{writing.to_string(index=False, float_format='%.2f')}\n", flush=True)
    measured = deactivation_claims.about_neurons(stats, config.tried, generator)
    measured |= deactivation_claims.about_effects(matrices[config.tried], tried)
    measured |= deactivation_claims.about_writing(texts, tried.languages)
    record.judge("deactivate_neurons", measured | deactivation_claims.about_size(matrices))


experiment = Experiment("deactivate_neurons", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()
