"""Is it the language, or its script?

    python -m experiments.explain_language tiny     # seconds
    python -m experiments.explain_language babel    # minutes
    python -m experiments.explain_language gemma    # Gemma 3 270M, which `make real` installs

Reads   a model, and text of its languages in two halves, as it is and rewritten
Writes  results/explain_language/<preset>/explanation.csv (what stays of a language's neurons),
        overlap.csv (of those selected on rewritten text), off.csv (losses), claims.json
Draws   figures/explanation-<preset>

Each language is read as it is, in another script, with its words or letters shuffled, with other
words, and as tokens drawn from their frequencies. Claims are about the languages that can be
romanised: is what LAPE finds in their own script still theirs in Latin letters, and does romanised
text need it?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from einops import reduce, repeat
from jaxtyping import Bool
from torch import Tensor

import interp
from experiments import gemma, runner
from experiments.deactivation_claims import compared
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.inference.intervals import mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.results.words import NOTHING
from interp.selections.explanation import ASPECTS
from interp.text.counterfactuals import SEPARATOR

ROMANISED = f"{SEPARATOR}romanised"
ALL, BOTH, OTHERS = "all", "kept in both scripts", "as many others"
"""The neurons of a language that are switched off."""
AS_IT_IS, IN_LATIN = "as it is", "romanised"
"""The text that is read."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is selected."""

    fraction: float = 0.01
    """Of all neurons, selected by LAPE."""


PRESETS = {
    "tiny": Preset(
        "Three languages of the shipped model, little text: seconds.",
        Study(languages=("de", "zh", "ja"), tokens=2560, held_out_tokens=512, n_shards=4),
        {"fraction": 0.03},
    ),
    "babel": Preset("The shipped model: minutes.", differences={"fraction": 0.03}),
    "gemma": replace(gemma.preset(), study=replace(gemma.STUDY, tokens=7680)),
}


def read(study: Study, model: interp.NeuronModel, config: Config) -> interp.FiringStats:
    """Counts on the first half of every language, as it is and rewritten."""
    labels = interp.text.with_counterfactuals(study.source, study.languages)
    text = replace(study, languages=labels).read(model, "train")
    return interp.collect(model, text, config.out / "statistics", progress=False).firing


def rewritten(labels: Sequence[str], kind: str, codes: Sequence[str]) -> list[str]:
    """For each language the label of its rewritten text, or its own if it was not rewritten so."""
    names = [f"{code}{SEPARATOR}{kind}" for code in codes]
    return [name if name in labels else code for name, code in zip(names, codes, strict=True)]


def overlap(stats: interp.FiringStats, codes: tuple[str, ...], fraction: float) -> Table:
    """A row per language and kind: the neurons selected on all languages rewritten so, and the
    Jaccard index with those of the language as it is, and of the closest other language."""
    original = interp.select_by_entropy(stats.languages_only(codes), fraction)
    rows = []
    for aspect, kinds in ASPECTS.items():
        kind = kinds[0]  # romanised: a language in Latin letters stays as it is
        names = rewritten(stats.languages, kind, codes)
        new = interp.select_by_entropy(stats.languages_only(names), fraction)
        sizes = list(new.counts().values())
        both = replace(
            original,
            mask=torch.cat([original.mask, new.mask]),
            languages=(*codes, *(f"new {code}" for code in codes)),
        )
        jaccard = both.jaccard()[len(codes) :, : len(codes)].nan_to_num(0.0)  # NaN: both are empty
        for row, code in enumerate(codes):
            if names[row] == code:
                continue
            elsewhere = jaccard[row].clone()
            elsewhere[row] = -1.0
            rows.append(
                {
                    "language": code,
                    "without": aspect,
                    "neurons": sizes[row],
                    "jaccard": jaccard[row, row].item(),
                    "elsewhere": elsewhere.max().item(),
                    "closest": codes[int(elsewhere.argmax())],
                }
            )
    return pd.DataFrame(rows)


def sets_of(
    own: Bool[Tensor, "layer neuron"],
    kept: Bool[Tensor, "layer neuron"],
    generator: torch.Generator,
) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """A language's neurons; those kept in both scripts; as many of the others, if there are."""
    sets, n = {ALL: own}, int(kept.sum())
    others = (own & ~kept).flatten().nonzero().flatten()
    if n:
        sets[BOTH] = kept
    if 0 < n <= len(others):
        drawn = torch.zeros(own.numel(), dtype=torch.bool)
        drawn[others[torch.randperm(len(others), generator=generator)[:n]]] = True
        sets[OTHERS] = drawn.reshape(own.shape)
    return sets


def switched_off(
    model: interp.NeuronModel, stats: interp.FiringStats, codes: tuple[str, ...], config: Config
) -> Table:
    """A row per romanised language, set and text: what its loss rises by without these neurons.

    `rate_matched`: without neurons of no language that fire nearly as often, on average over both
    scripts.
    """
    whole = interp.select_by_entropy(stats.languages_only(codes), config.fraction)
    beyond = interp.selections.beyond_script(stats, config.fraction)
    generator = torch.Generator().manual_seed(config.study.seed)
    tables: list[Table] = []
    for code in romanised(stats):
        pair = (code, f"{code}{ROMANISED}")
        sets = sets_of(whole[code], beyond[code], generator)
        if not sets[ALL].any():
            continue
        selection = interp.NeuronSelection(
            torch.stack(list(sets.values())), tuple(sets), pool=sets[ALL] | ~whole.union()
        )
        mean = reduce(
            stats.languages_only(pair).rate, "script layer neuron -> layer neuron", "mean"
        )
        matrix = interp.perplexity_matrix(
            model,
            selection,
            replace(config.study, languages=pair).read(model, "held_out"),
            n_draws=0,
            rate=repeat(mean, "layer neuron -> set layer neuron", set=len(sets)),
            out=config.out / "off" / code,
            progress=False,
        )
        frame = matrix.to_frame().assign(language=code)
        texts = dict(zip(pair, (AS_IT_IS, IN_LATIN), strict=True))
        frame["read"] = frame["read"].map(texts.get)
        tables.append(frame.loc[frame["off"] != NOTHING])
    return pd.concat(tables, ignore_index=True)[list(OFF_COLUMNS)]


OFF_COLUMNS = (
    *("language", "off", "neurons", "read", "loss"),
    *("increase", "increase_low", "increase_high", "rate_matched", "rate_excess"),
)


def romanised(stats: interp.FiringStats) -> tuple[str, ...]:
    """The languages that were read in Latin letters too."""
    return tuple(
        label.removesuffix(ROMANISED) for label in stats.languages if label.endswith(ROMANISED)
    )


def by_language(frame: Table, value: str, **where: str) -> pd.Series:
    """The rows where these columns have these values: one number per language."""
    for column, wanted in where.items():
        frame = frame[frame[column] == wanted]
    return frame.set_index("language")[value].dropna()


def paired(value: pd.Series, control: pd.Series) -> Measurement | None:
    """Means over the languages that have both numbers."""
    both = pd.concat({"value": value, "control": control}, axis=1, join="inner")
    a, b = (torch.tensor(both[name].to_numpy(), dtype=torch.float64) for name in both)
    return compared(a, b)


def measures(explanation: Table, overlaps: Table, off: Table) -> dict[str, Measurement | None]:
    """Means over the romanised languages, which alone are in the tables."""

    def kept(aspect: str) -> Measurement | None:
        shares = [by_language(explanation, name, without=aspect) for name in ("kept", "random")]
        return paired(*shares)

    def rise(which: str, read: str, value: str = "increase") -> pd.Series:
        return by_language(off, value, off=which, read=read)

    elsewhere = by_language(overlaps, "elsewhere", without="script")
    numbers = torch.tensor(elsewhere.to_numpy(), dtype=torch.float64)
    jaccards = [by_language(overlaps, "jaccard", without=x) for x in ("script", "word order")]
    less: Mapping[str, pd.Series] = {
        value: rise(ALL, AS_IT_IS, value) - rise(ALL, IN_LATIN, value)
        for value in ("increase", "rate_matched")
    }
    beyond = [rise(BOTH, IN_LATIN, value) for value in ("increase", "rate_matched")]
    return {
        "script-disjoint": paired(*jaccards),
        "script-elsewhere": Measurement(mean_over_examples(numbers)) if len(numbers) > 1 else None,
        "script-order": kept("word order"),
        "script-invariant": paired(rise(BOTH, AS_IT_IS), rise(OTHERS, AS_IT_IS)),
        "script-effect": paired(*less.values()),
        "script-frequencies": kept("all but frequencies"),
        "script-beyond": kept("script"),
        "script-beyond-effect": paired(*beyond),
    }


def main(config: Config, record: Record) -> None:
    model, codes = record.open(config.study), config.study.languages
    stats = read(config.study, model, config)
    if not romanised(stats):
        raise ValueError(
            f"The languages are {', '.join(codes)}, all in Latin letters: add one that can be "
            "romanised, such as ja."
        )
    explained = interp.selections.explain(stats, config.fraction)
    print(explained.sentences(), flush=True)
    tables = {
        "explanation": explained.to_frame(),
        "overlap": overlap(stats, codes, config.fraction),
        "off": switched_off(model, stats, codes, config),
    }
    record.tables(tables)
    for name, table in tables.items():
        print(f"\n{name}\n{table.to_string(index=False, float_format='%.3f')}", flush=True)
    about = [table[table["language"].isin(romanised(stats))] for table in tables.values()]
    record.judge("explain_language", measures(*about))


experiment = Experiment("explain_language", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()
