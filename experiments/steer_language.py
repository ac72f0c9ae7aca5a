"""Can units switch the language in which a model writes, and is what it writes still text?

    python -m experiments.steer_language tiny      # a minute: does every part run?
    python -m experiments.steer_language babel     # 8 minutes on 2 cores
    python -m experiments.steer_language thorough  # 40 minutes: more settings, more texts
    python -m experiments.steer_language paper     # hours of a GPU; --study.model NAME

Reads   a model, and text of its languages: neurons are found on one half, guards measured on both
Writes  results/steer_language/<preset>/sweep.csv, final.csv, texts.csv, claims.json

Every way has its own knobs (which set, how many units, how strong). They are tried on a few texts
per language; the setting of each way that steers best (mean over languages of `steering_score`) is
then run anew, on more texts with other seeds, so that the best of many is not reported for its
luck. Texts begin with nothing, or with the prompt that names the language. A text counts as good
if it is in the language and passes the guard: long enough, not repeating itself, and as likely
under the untouched model as natural text of that language is (99 % of which is).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch

import interp
from experiments import papers, runner
from experiments.runner import Experiment, Preset, Record
from experiments.steering_claims import (
    BOTTOM,
    LAPE,
    NEARLY_ALL,
    NOTHING,
    PRECISION,
    RANDOM_NEURONS,
    RANDOM_UNITS,
    RESIDUAL,
    TOP,
    of_sizes,
    of_ways,
    setting_of,
    tenfold,
)
from experiments.study import Study
from interp.evaluations.languages_written import GeneratedLanguages, Guard
from interp.evaluations.steering import Condition, steering_rates
from interp.interventions.edits import Edit, difference_of_means, override, sentence_medians
from interp.scores.average_precision import measure_precision
from interp.text.languages import naming_prompt

Towards = Callable[[str], list[interp.Change]]
"""What is changed while texts of a language are to be written."""


@dataclass(frozen=True)
class Way:
    """One way to ask for a language, with its knobs set."""

    name: str
    """What is done."""

    setting: str
    """The knobs, in words."""

    changes: Towards
    """What is changed towards a language."""

    named: bool = False
    """Whether the prompt names the language."""

    control: str = ""
    """The way that this one is a control to: it is run with the setting that was best there."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is tried."""

    fractions: tuple[float, ...] = (0.03, 0.1)
    """Of all neurons, selected by LAPE."""

    units: tuple[int, ...] = (290, 900, 2900, 9000)
    """Units per language, by average precision; half from the top, half from the bottom. The paper
    takes 2000 and 20,000, which are 0.9 and 9 % of the units of its smallest models; 290 and 2900
    are as large shares of Babel's. A number and ten times as many are compared in the claims."""

    most: float = 0.9
    """Part of all units that is held at once, which is too many: what is written collapses."""

    strengths: tuple[float, ...] = (2.0, 4.0)
    """Times the difference of means."""

    layers: tuple[int, ...] | None = None
    """Layers whose residual stream is pushed; None: the first, middle and last but one."""

    n_natural: int = 600
    """Natural texts per language that the guard is measured on."""

    n_sweep: int = 12
    """Texts per language while looking for the best setting."""

    n_final: int = 50
    """Texts per language with the best settings."""

    max_new_tokens: int = 64
    """Length of a text."""

    temperature: float = 0.8
    """Of sampling."""


PRESETS = {
    "tiny": Preset(
        "Every part once, on the shipped model: a minute.",
        Study(languages=("de", "ja"), tokens=4000),
        {
            "fractions": (0.03,),
            "units": (400,),
            "strengths": (2.0,),
            "layers": (3,),
            "n_sweep": 4,
            "n_final": 6,
            "max_new_tokens": 24,
        },
    ),
    "babel": Preset("The shipped model: 8 minutes on 2 cores."),
    "thorough": Preset(
        "The same with more settings and more texts: 40 minutes on 2 cores.",
        differences={
            "fractions": (0.01, 0.03, 0.1),
            "strengths": (1.0, 2.0, 4.0),
            "n_sweep": 24,
            "n_final": 100,
        },
    ),
    "paper": papers.preset(
        replace(papers.KOJIMA, model="facebook/xglm-564M"),
        "500 sentences of PAWS-X in each of 6 languages, and half a million tokens",
        6 * (2 * 500_000 + 500 * 30 + 31 * 50 * 64),
        "writing texts in some 12,000 steps takes longer",
        units=(400, 2000, 20_000),
    ),
}


# ---------------------------------------------------------------- ways


def neuron_ways(
    model: interp.NeuronModel,
    stats: interp.FiringStats,
    moments: interp.ActivationMoments,
    config: Config,
    generator: torch.Generator,
) -> Iterator[Way]:
    """LAPE sets of each size pushed towards the language, alone or with the other sets off."""
    for fraction in config.fractions:
        found = interp.select_by_entropy(stats, fraction)
        drawn = found.random_like(generator, exclude=found.union())
        for strength, off in itertools.product(config.strengths, (False, True)):
            setting = f"{fraction:g} of all, strength {strength:g}"
            setting += ", other languages' off" if off else ""
            for name, chosen in ((LAPE, found), (RANDOM_NEURONS, drawn)):
                yield Way(
                    name,
                    setting,
                    partial(pushed, moments, chosen, strength, off),
                    control="" if chosen is found else LAPE,
                )


def pushed(
    moments: interp.ActivationMoments,
    chosen: interp.NeuronSelection,
    strength: float,
    off: bool,
    code: str,
) -> list[interp.Change]:
    changes = []
    if chosen[code].any():  # LAPE may leave a language without a neuron
        changes.append(chosen.change(code, difference_of_means(moments, code, strength)))
    others = chosen.union() & ~chosen[code]
    if off and others.any():
        changes.append(interp.Change(others, interp.deactivate))
    return changes


def precision_ways(
    model: interp.NeuronModel,
    means: interp.SentenceMeans,
    config: Config,
    generator: torch.Generator,
) -> Iterator[Way]:
    """Kojima et al. (2024): units that detect the language, held at their median on it."""
    precision = measure_precision(means)
    edits = {code: override(sentence_medians(means, code)) for code in config.study.languages}

    def way(name: str, chosen: interp.NeuronSelection, n: int, control: str = "") -> Way:
        return Way(name, setting_of(n), partial(held, chosen, edits), control=control)

    for n in config.units:
        found = interp.select_by_precision(precision, n)
        yield way(PRECISION, found, n)
        # Drawn of all units: large sets leave too few others.
        yield way(RANDOM_UNITS, found.random_like(generator), n, control=PRECISION)
        top = interp.select_by_precision(precision, n, "top")
        bottom = interp.select_by_precision(precision, n, "bottom")
        yield way(TOP, top, n, control=PRECISION)
        yield way(BOTTOM, bottom, n, control=PRECISION)
    n = round(config.most * precision.average_precision[0].numel()) // 2 * 2
    yield way(NEARLY_ALL, interp.select_by_precision(precision, n), n)


def held(
    chosen: interp.NeuronSelection, edits: Mapping[str, Edit], code: str
) -> list[interp.Change]:
    return [chosen.change(code, edits[code])]


def residual_ways(
    model: interp.NeuronModel, corpora: interp.Corpora, config: Config
) -> Iterator[Way]:
    """The residual stream behind one layer, pushed by the difference of its means."""
    means = interp.interventions.residual_means(model, corpora)
    n = model.n_layers
    for layer in config.layers or sorted({0, n // 2, max(n - 2, 0)}):
        for strength in config.strengths:

            def changes(
                code: str, layer: int = layer, strength: float = strength
            ) -> list[interp.Change]:
                return [interp.Change(*means.towards(code, layer, strength))]

            yield Way(RESIDUAL, f"behind layer {layer}, strength {strength:g}", changes)


# ---------------------------------------------------------------- running


def run(
    model: interp.NeuronModel,
    way: Way,
    guards: Mapping[str, Guard],
    config: Config,
    n: int,
    seed: int,
) -> dict[str, GeneratedLanguages]:
    """Texts of one way towards each language in turn."""
    conditions = [
        Condition(
            to=code,
            name=way.name,
            changes=way.changes(code),
            prompt=naming_prompt(code) if way.named else "",
        )
        for code in config.study.languages
    ]
    settings = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    found = steering_rates(model, conditions, guards, n=n, seed=seed, progress=False, **settings)
    return {code: row[way.name] for code, row in found.rates.items()}


def table(
    way: Way, found: Mapping[str, GeneratedLanguages], guards: Mapping[str, Guard]
) -> pd.DataFrame:
    """A row for each language steered to: how often it was reached, and how good the texts are."""
    rows = []
    for code, texts in found.items():
        line = texts.to_frame().set_index("language").loc[code]
        rows.append(
            {
                "way": way.name,
                "setting": way.setting,
                "to": code,
                **line[["rate", "rate_low", "rate_high", "good", "good_low", "good_high"]],
                "score": texts.steering_score(code),
                **line[["repetition", "loss"]],
                "natural_loss": guards[code].natural_loss,
                "max_loss": guards[code].max_loss,
            }
        )
    return pd.DataFrame(rows)


def texts_of(way: Way, found: Mapping[str, GeneratedLanguages]) -> pd.DataFrame:
    """A row for each text, with the language that was asked for."""
    return pd.concat(
        [
            each.texts_frame().assign(way=way.name, setting=way.setting, to=code)
            for code, each in found.items()
        ]
    )


def best_of(sweep: pd.DataFrame) -> dict[str, str]:
    """For each way the setting with the highest mean score; of equals the one tried first."""
    mean: Any = sweep.groupby(["way", "setting"], sort=False)["score"].mean()
    return {str(way): str(each.idxmax()[1]) for way, each in mean.groupby(level=0, sort=False)}


def summary(final: pd.DataFrame) -> str:
    """Rates of good texts, ways down and languages across."""
    lines = []
    for name, column in (("in the language", "rate"), ("in the language and good", "good")):
        wide = final.pivot_table(index=["way", "setting"], columns="to", values=column, sort=False)
        wide["above 60 %"] = (wide > 0.6).sum(axis=1)
        lines.append(f"Share of texts {name}:\n\n{wide.to_string(float_format='%.2f')}\n")
    loss = final.assign(more=final["loss"] - final["natural_loss"])
    wide = loss.pivot_table(index=["way", "setting"], columns="to", values="more", sort=False)
    lines.append(
        "Median loss of texts in the language, less that of natural text (nats per token):\n\n"
        f"{wide.to_string(float_format='%.2f')}\n"
    )
    return "\n".join(lines)


def every_way(model: interp.NeuronModel, config: Config) -> list[Way]:
    """The ways and their controls, in the order of the tables."""
    study = config.study
    stats, moments = study.statistics(model)
    generator = torch.Generator().manual_seed(study.seed)
    return [
        Way(NOTHING, "", lambda code: []),
        Way("named in prompt", "", lambda code: [], named=True),
        *neuron_ways(model, stats, moments, config, generator),
        *precision_ways(model, study.sentence_means(model), config, generator),
        *residual_ways(model, study.read(model, "train"), config),
    ]


def sweep(
    model: interp.NeuronModel,
    ways: Sequence[Way],
    guards: Mapping[str, Guard],
    config: Config,
    record: Record,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every setting on a few texts: how often languages are reached, and the texts.

    Controls are run with the best setting alone, but for random units of the sizes compared.
    """
    beside = [setting_of(n) for n in tenfold(config.units) or ()]
    tables, texts = [], []
    for way in ways:
        if way.control and not (way.name == RANDOM_UNITS and way.setting in beside):
            continue
        found = run(model, way, guards, config, config.n_sweep, 10**6)
        texts.append(texts_of(way, found))
        if way.control:
            continue
        row = table(way, found, guards)
        tables.append(row)
        shown = " ".join(
            f"{code} {rate:.2f}/{good:.2f}"
            for code, rate, good in zip(row["to"], row["rate"], row["good"], strict=True)
        )
        print(f"{way.name:<16} {way.setting:<44} {shown}", flush=True)
        record.tables({"sweep": pd.concat(tables)})  # again each time, to be looked at
    return pd.concat(tables), pd.concat(texts)


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study, "hooked")
    natural = {
        code: list(itertools.islice(study.documents(code), config.n_natural))
        for code in study.languages
    }
    guards = interp.evaluations.natural_guard(model, natural, max_tokens=config.max_new_tokens)
    ways = every_way(model, config)
    swept, tried = sweep(model, ways, guards, config, record)
    best = best_of(swept)
    finals, texts = [], []
    for way in ways:
        if way.setting == best[way.control or way.name]:
            found = run(model, way, guards, config, config.n_final, study.seed)
            finals.append(table(way, found, guards))
            texts.append(texts_of(way, found))
    final, every = pd.concat(finals), pd.concat(texts)
    record.tables({"final": final, "texts": every})
    print(f"\nThe best setting of each way, {config.n_final} new texts per language.\n")
    print(summary(final))
    record.judge("steer_language", of_ways(every) | of_sizes(tried, tenfold(config.units)))


experiment = Experiment("steer_language", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()
