"""In which language does each layer speak, and which language do language neurons promote?

    python -m experiments.lens_by_language tiny      # a minute: does every part run?
    python -m experiments.lens_by_language babel     # a minute on 2 cores
    python -m experiments.lens_by_language paper     # a GPU; --study.model NAME

Reads   a model, its facts in several languages, and text of them
Writes  results/lens_by_language/<preset>/lens.csv (the answer in the prompt's language and in the
        pivot's, by layer), top.csv (whose tokens each layer would say), promoted.csv (whose tokens
        a language's neurons write, beside as many random neurons of the same layers), claims.json
Draws   figures/lens-babel

If a model thinks in its pivot language (Wendler et al., 2024), the answer's pivot word is likely in
middle layers, whatever the language of the prompt, and its own word only in the last. Facts of
which the two words may begin with the same token cannot tell; they are left out and counted. The
control is another language in the place of the pivot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

import interp
from experiments import papers, runner
from experiments.runner import Experiment, Preset, Record
from experiments.study import LANGUAGES, Study
from interp.inference.claims import Measurement
from interp.inference.intervals import mean_over_examples
from interp.prompts.lens import (
    Lens,
    Question,
    languages_of,
    logit_lens,
    promoted_languages,
    token_languages,
)
from interp.results import artifacts
from interp.results.frames import tidy
from interp.text.languages import language
from interp.text.tasks import align_tasks, read_task
from interp.text.tokens import prompt_ids


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is read."""

    facts: str = "babel/fact_completion"
    """Babel's facts, or a folder of <language>.jsonl with prompts, options and answers in the
    language of the prompt."""

    pivot: str = "en"
    """The language that layers may speak instead of the prompt's."""

    fraction: float = 0.03
    """Of all neurons, selected by LAPE: that of Babel's card."""

    n_facts: int | None = None
    """Facts of each language, from the first; None: all."""

    n_draws: int = 5
    """Random selections beside the language neurons."""


PRESETS = {
    "tiny": Preset(
        "Every part once, on the shipped model: a minute.",
        Study(languages=("en", "ja"), tokens=4000),
        {"n_facts": 30, "n_draws": 1},
    ),
    "babel": Preset("The shipped model, its six languages."),
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
    """Facts asked in a language, with the answer in it and in the pivot, and which were untold."""
    codes = [code, pivot]
    asked, translated = align_tasks([read_task(config.facts, each) for each in codes])
    found, held_out = [], []
    for item, other in list(zip(asked.items, translated.items, strict=True))[: config.n_facts]:
        ids = prompt_ids(model, item.prompt, "auto")
        words = [each.options[each.answer].strip(" .。」") for each in (item, other)]
        found.append(Question(ids, dict(zip(codes, words, strict=True))))
        held_out.append(item.held_out)
    return found, held_out


def top_table(
    lens: Lens, shares: Float64[Tensor, "language vocab"], asked_in: str, codes: tuple[str, ...]
) -> pd.DataFrame:
    """How each layer's most likely tokens divide among languages."""
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
    """Whose tokens language neurons promote, and random ones."""
    codes, selection = config.study.languages, interp.select_by_entropy(stats, config.fraction)
    generator = torch.Generator().manual_seed(config.study.seed)
    sets = {"language neurons": selection}
    for draw in range(config.n_draws):
        drawn = selection.random_like(generator, exclude=selection.union())
        sets[f"random neurons {draw}"] = drawn
    tables = []
    for name, neurons in sets.items():
        share = promoted_languages(model, neurons, shares, moments)
        axes = {"neurons": [name], "owner": codes, "layer": range(model.n_layers)}
        tables.append(tidy(axes | {"language": codes}, {"share": share}))
    return pd.concat(tables, ignore_index=True)


def lens_of(model: interp.NeuronModel, asked: Sequence[Question], what: str) -> Lens | None:
    """None, and a line on why, where fewer than two questions are left."""
    try:
        lens = logit_lens(model, asked)
    except ValueError as error:  # no fact is left, or none was held out
        print(f"{what}: {error}", flush=True)
        return None
    return lens if len(lens.kept) > 1 else None


def middle(n_layers: int) -> slice:
    """All layers but the first and the last quarter of them."""
    outer = max(1, round(n_layers / 4))
    return slice(outer, n_layers - outer)


def pivot_minus_own(lenses: Sequence[Lens]) -> Float64[Tensor, " prompt"]:
    """By how much likelier the pivot's word is than the prompt's own, mean over middle layers."""
    each = []
    for lens in lenses:
        own, pivot = lens.probability[:, middle(lens.probability.shape[1])].unbind(dim=2)
        each.append((pivot - own).mean(dim=1))
    return torch.cat(each)


Shares = Float64[Tensor, "prompt layer language"]


def measures(
    lenses: Mapping[str, Lens],
    controls: Mapping[str, Lens],
    spoken: Mapping[str, Shares],
    promoted: pd.DataFrame,
    codes: tuple[str, ...],
    pivot: str,
) -> dict[str, Measurement | None]:
    """Does the model think in the pivot, and do language neurons write their language?"""
    measured: dict[str, Measurement | None] = dict.fromkeys(
        ("pivot-word-first", "pivot-tokens-first")
    )
    if lenses:
        # One fact is asked in several languages.
        facts = torch.tensor([fact for lens in lenses.values() for fact in lens.kept])
        words = pivot_minus_own(list(lenses.values()))
        other = [pivot_minus_own(list(controls.values())).mean().item()] if controls else []
        measured["pivot-word-first"] = Measurement(mean_over_examples(words, facts), *other)
        place = codes.index(pivot)
        leads = [each[:, :, place] - each[:, :, codes.index(code)] for code, each in spoken.items()]
        inside = torch.cat([lead[:, middle(lead.shape[1])].mean(dim=1) for lead in leads])
        last = torch.cat([lead[:, -1] for lead in leads]).mean().item()
        measured["pivot-tokens-first"] = Measurement(mean_over_examples(inside, facts), last)
    return measured | {"language-neurons-write-language": own_promoted(promoted)}


def own_promoted(promoted: pd.DataFrame) -> Measurement | None:
    """Share of the own language in what language neurons promote, beyond random ones."""
    wide = own_share(promoted).pivot_table(
        index=["owner", "layer"], columns="neurons", values="share"
    )
    random = wide["random neurons"]
    beyond = (wide["language neurons"] - random).dropna().groupby("owner").mean()
    if len(beyond) < 2:
        return None
    return Measurement(mean_over_examples(torch.tensor(beyond.to_numpy())), float(random.mean()))


def own_share(promoted: pd.DataFrame) -> Any:
    """Of the own language alone, with one name for all draws of random neurons."""
    own: Any = promoted[promoted["owner"] == promoted["language"]]
    return own.assign(neurons=own["neurons"].str.replace(r" \d+$", "", regex=True))


class Read(NamedTuple):
    """What the layers say."""

    lenses: dict[str, Lens]
    """By language of the prompt, with the pivot beside it."""

    controls: dict[str, Lens]
    """The same with another language in the place of the pivot."""

    curves: list[pd.DataFrame]
    """Probability of the words, by layer."""


def read_layers(model: interp.NeuronModel, config: Config) -> Read:
    """Every language but the pivot, all facts and those that were held out."""
    codes, found = config.study.languages, Read({}, {}, [])
    for place, code in enumerate(codes):
        if code == config.pivot:
            continue
        asked, held_out = questions(model, config, code, config.pivot)
        untold = [each for each, out in zip(asked, held_out, strict=True) if out]
        for name, some in (("all", asked), ("held_out", untold)):
            if (lens := lens_of(model, some, f"{code}, {name} facts")) is None:
                continue
            found.curves.append(lens.to_frame().assign(asked_in=code, facts=name))
            if name == "all":
                found.lenses[code] = lens
                lens.save(config.out / f"lens_{code}.safetensors", artifacts.provenance())
        others = [
            each for each in codes[place:] + codes[:place] if each not in (code, config.pivot)
        ]
        if others:
            asked, _ = questions(model, config, code, others[0])
            if (lens := lens_of(model, asked, f"{code} beside {others[0]}")) is not None:
                found.controls[code] = lens
    return found


def main(config: Config, record: Record) -> None:
    study, codes = config.study, config.study.languages
    model = record.open(study)
    stats, moments = study.statistics(model)
    shares = token_languages(study.read(model, "held_out"), model)
    lenses, controls, curves = read_layers(model, config)
    promoted = promoted_table(model, config, stats, moments, shares)
    if curves:
        tops = [top_table(lens, shares, code, codes) for code, lens in lenses.items()]
        record.tables({"lens": pd.concat(curves), "top": pd.concat(tops)})
        shown = pd.concat(curves).query("facts == 'all'")
        own = shown["asked_in"] == shown["language"]
        shown = shown.assign(word=own.map(lambda own: "own" if own else "pivot"))
        wide = shown.pivot_table(index=["asked_in", "word"], columns="layer", values="probability")
        text = wide.to_string(float_format="%.3f")
        print(f"Probability of the answer's word, by layer\n\n{text}\n")
    record.tables({"promoted": promoted})
    wide = own_share(promoted).pivot_table(
        index=["owner", "neurons"], columns="layer", values="share"
    )
    print("Share of the own language in what neurons promote, by layer\n")
    print(wide.to_string(float_format="%.2f"))
    spoken = {code: languages_of(lens.top, shares).nan_to_num(0.0) for code, lens in lenses.items()}
    measured = measures(lenses, controls, spoken, promoted, codes, config.pivot)
    record.judge("lens_by_language", measured, pivot=language(config.pivot).name)


experiment = Experiment("lens_by_language", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()
