"""In which language does each layer speak, and which language do language neurons promote?

    python -m experiments.lens_by_language tiny      # a minute: does every part run?
    python -m experiments.lens_by_language babel     # a minute on 2 cores
    python -m experiments.lens_by_language gemma     # Gemma 3 270M, which `make real` installs
    python -m experiments.lens_by_language paper     # a GPU; --study.model NAME

Reads   a model, its facts in several languages, and text of them
Writes  results/lens_by_language/<preset>/lens.csv (the answer in the prompt's language and in the
        pivot's, by layer), top.csv (languages of each layer's likeliest tokens), promoted.csv
        (languages of the tokens that language neurons promote, and random ones), claims.json
Draws   figures/lens-babel

If a model thinks in its pivot language (Wendler et al., 2024), the answer's pivot word is likely in
middle layers, whatever the prompt's language, and the word of the prompt's language only in the
last. Facts whose two words may begin with the same token are left out and counted. The control is
another language instead of the pivot, so two languages alone give no claim about words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

import interp
from experiments import gemma, papers, runner
from experiments.runner import Experiment, Preset, Record
from experiments.study import LANGUAGES, Study
from interp.inference.intervals import mean_over_examples
from interp.inference.statements import Measurement
from interp.prompts import Lens, Question
from interp.prompts.lens import languages_of, promoted_languages, token_languages
from interp.results import artifacts
from interp.results.frames import tidy
from interp.text.languages import language
from interp.text.tokens import prompt_ids


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is read."""

    facts: str = "babel/fact_completion"
    """Babel's facts, or a folder of <language>.jsonl with prompts, options and answers."""

    pivot: str = "en"
    """The language that middle layers may speak instead of the prompt's."""

    fraction: float = 0.03
    """Of all neurons, selected by LAPE, as on Babel's card."""

    n_facts: int | None = None
    """Facts of each language, the first ones; None: all."""

    n_draws: int = 5
    """Random selections of the same size per layer."""


PRESETS = {
    "tiny": Preset(
        "Every part once, on the shipped model: a minute.",
        Study(languages=("en", "ja"), tokens=4000),
        {"n_facts": 30, "n_draws": 1},
    ),
    "babel": Preset("The shipped model, its six languages."),
    "gemma": gemma.preset(fraction=0.01),
    "paper": papers.preset(
        replace(papers.TANG, languages=LANGUAGES, tokens=10_000_000),
        f"mLAMA in 6 languages ({papers.FACTS}, made by python -m experiments.paper_tasks), "
        "language neurons from Wikipedia",
        6 * (1e7 + 2**20 + 3 * 1000 * 15),
        facts=papers.FACTS,
        fraction=0.01,
    ),
}


def questions(
    model: interp.NeuronModel, config: Config, code: str, pivot: str
) -> tuple[list[Question], list[bool]]:
    """Facts asked in a language, with the answer in it and in the pivot; which were held out."""
    tasks = interp.text.align_tasks([interp.read_task(config.facts, c) for c in (code, pivot)])
    prompts, held_out = [], []
    for items in list(zip(*(task.items for task in tasks), strict=True))[: config.n_facts]:
        ids = prompt_ids(model, items[0].prompt, config.study.held_out_bos)
        own, translated = (item.options[item.answer].strip(" .。」") for item in items)
        prompts.append(Question(ids, {code: own, pivot: translated}))
        held_out.append(items[0].held_out)
    return prompts, held_out


def top_table(
    lens: Lens, shares: Float64[Tensor, "language vocab"], asked_in: str, codes: tuple[str, ...]
) -> pd.DataFrame:
    """Share of each language in each layer's likeliest tokens."""
    mean = mean_over_examples(languages_of(lens.top, shares).nan_to_num(1 / len(codes)))
    axes = {"asked_in": [asked_in], "layer": range(lens.top.shape[1]), "language": codes}
    return tidy(axes, {"share": mean.value, "low": mean.low, "high": mean.high})


def promoted_table(
    model: interp.NeuronModel,
    config: Config,
    stats: interp.FiringStats,
    moments: interp.ActivationMoments,
    shares: Float64[Tensor, "language vocab"],
) -> pd.DataFrame:
    """Share of each language in the tokens that language neurons promote, and random neurons."""
    codes, selection = config.study.languages, interp.select_by_entropy(stats, config.fraction)
    generator = torch.Generator().manual_seed(config.study.seed)
    sets = {"language neurons": selection}
    for n in range(config.n_draws):
        sets[f"random neurons {n}"] = selection.random_like(generator, exclude=selection.union())
    tables = []
    for name, neurons in sets.items():
        share = promoted_languages(model, neurons, shares, moments)
        axes = {"neurons": [name], "owner": codes, "layer": range(model.n_layers)}
        tables.append(tidy(axes | {"language": codes}, {"share": share}))
    return pd.concat(tables, ignore_index=True)


def lens_of(model: interp.NeuronModel, prompts: Sequence[Question], what: str) -> Lens | None:
    """The lens on these questions; None, with a printed reason, if fewer than two are usable."""
    try:
        lens = interp.logit_lens(model, prompts)
    except ValueError as error:  # no usable fact
        print(f"{what}: {error}", flush=True)
        return None
    return lens if len(lens.kept) > 1 else None


def middle(n_layers: int) -> slice:
    """All layers but the first and last quarter."""
    outer = max(1, round(n_layers / 4))
    return slice(outer, n_layers - outer)


def pivot_minus_own(lenses: Sequence[Lens]) -> Float64[Tensor, " prompt"]:
    """Probability of the pivot's word minus that of the own word, mean over middle layers."""
    leads = []
    for lens in lenses:
        own, pivot = lens.probability[:, middle(lens.probability.shape[1])].unbind(dim=2)
        leads.append((pivot - own).mean(dim=1))
    return torch.cat(leads)


Shares = Float64[Tensor, "prompt layer language"]


def measures(
    lenses: Mapping[str, Lens],
    controls: Mapping[str, Lens],
    spoken: Mapping[str, Shares],
    promoted: pd.DataFrame,
    codes: tuple[str, ...],
    pivot: str,
) -> dict[str, Measurement | None]:
    """Does the model think in the pivot, and do language neurons promote their language?"""
    measured: dict[str, Measurement | None] = dict.fromkeys(
        ("pivot-word-first", "pivot-tokens-first")
    )
    if lenses:
        # A fact asked in several languages is one cluster.
        facts = torch.tensor([fact for lens in lenses.values() for fact in lens.kept])
        words = pivot_minus_own(list(lenses.values()))
        if controls:
            asked = torch.tensor([fact for lens in controls.values() for fact in lens.kept])
            control = mean_over_examples(pivot_minus_own(list(controls.values())), asked)
            value = mean_over_examples(words, facts)
            measured["pivot-word-first"] = Measurement(value, control)
        row = codes.index(pivot)
        leads = [x[:, :, row] - x[:, :, codes.index(code)] for code, x in spoken.items()]
        inside = torch.cat([lead[:, middle(lead.shape[1])].mean(dim=1) for lead in leads])
        last = torch.cat([lead[:, -1] for lead in leads])
        numbers = (mean_over_examples(part, facts) for part in (inside, last, inside - last))
        measured["pivot-tokens-first"] = Measurement(*numbers)
    return measured | {"language-neurons-write-language": own_promoted(promoted)}


def own_promoted(promoted: pd.DataFrame) -> Measurement | None:
    """Share of the own language in what language neurons promote, minus that of random neurons."""
    wide = own_share(promoted, "layer", "neurons")
    random = wide["random neurons"]
    beyond = (wide["language neurons"] - random).dropna().groupby("owner").mean()
    if len(beyond) < 2:
        return None
    return Measurement(mean_over_examples(torch.tensor(beyond.to_numpy())))


def own_share(promoted: pd.DataFrame, index: str, columns: str) -> Any:
    """The shares of the own language, mean over random draws, with a row per owner and `index`."""
    own: Any = promoted[promoted["owner"] == promoted["language"]]
    own = own.assign(neurons=own["neurons"].str.replace(r" \d+$", "", regex=True))
    return own.pivot_table(index=["owner", index], columns=columns, values="share")


class Lenses(NamedTuple):
    """The lenses of all languages."""

    lenses: dict[str, Lens]
    """By language of the prompt, with the pivot as second language."""

    controls: dict[str, Lens]
    """The same with another language instead of the pivot."""

    curves: list[pd.DataFrame]
    """Probability of the words, by layer."""


def read_layers(model: interp.NeuronModel, config: Config) -> Lenses:
    """Every language but the pivot; all facts, and the held-out ones alone."""
    codes, result = config.study.languages, Lenses({}, {}, [])
    for row, code in enumerate(codes):
        if code == config.pivot:
            continue
        prompts, held_out = questions(model, config, code, config.pivot)
        untold = [prompt for prompt, out in zip(prompts, held_out, strict=True) if out]
        for name, facts in (("all", prompts), *([("held_out", untold)] if untold else [])):
            if (lens := lens_of(model, facts, f"{code}, {name} facts")) is None:
                continue
            result.curves.append(lens.to_frame().assign(asked_in=code, facts=name))
            if name == "all":
                result.lenses[code] = lens
                lens.save(config.out / f"lens_{code}.safetensors", artifacts.provenance())
        others = [other for other in codes[row:] + codes[:row] if other not in (code, config.pivot)]
        if others:
            prompts, _ = questions(model, config, code, others[0])
            if (lens := lens_of(model, prompts, f"{code} with {others[0]}")) is not None:
                result.controls[code] = lens
    return result


def main(config: Config, record: Record) -> None:
    study, codes = config.study, config.study.languages
    model = record.open(study)
    stats, moments = study.statistics(model)
    shares = token_languages(study.read(model, "held_out"), model)
    lenses, controls, curves = read_layers(model, config)
    promoted = promoted_table(model, config, stats, moments, shares)
    record.tables({"promoted": promoted})
    if curves:
        tops = [top_table(lens, shares, code, codes) for code, lens in lenses.items()]
        record.tables({"lens": pd.concat(curves), "top": pd.concat(tops)})
        shown = pd.concat(curves).query("facts == 'all'")
        own = shown["asked_in"] == shown["language"]
        shown = shown.assign(word=own.map(lambda own: "own" if own else "pivot"))
        wide = shown.pivot_table(index=["asked_in", "word"], columns="layer", values="probability")
        text = wide.to_string(float_format="%.3f")
        print(f"Probability of the answer's word, by layer\n\n{text}\n")
    wide = own_share(promoted, "neurons", "layer")
    print("Share of the own language in what neurons promote, by layer\n")
    print(wide.to_string(float_format="%.2f"))
    spoken = {code: languages_of(lens.top, shares).nan_to_num(0.0) for code, lens in lenses.items()}
    measured = measures(lenses, controls, spoken, promoted, codes, config.pivot)
    record.judge("lens_by_language", measured, pivot=language(config.pivot).name)


experiment = Experiment("lens_by_language", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()
