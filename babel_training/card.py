"""Write Babel's card, and the table in the README, from what was measured.

    python -m babel_training.card      # a second

Reads   measure/measured.json, measure/history.json, train/cpu/curve.csv of results/babel_training
Writes  interp/babel/README.md; the part of README.md between the two babel marks;
        tests/babel_logits.safetensors, by which another machine can tell that it reads the weights
"""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from babel_training import knowledge
from babel_training.knowledge import BABEL, LANGUAGES
from babel_training.measure import PROMPT_WORDS, share_with_interval
from babel_training.recipe import PRESETS, Config
from interp.results import artifacts

README = Path(__file__).parents[1] / "README.md"
RECIPES = Path("results/babel_training/search/table.csv")
SOURCES = {
    "eltec": ("novels 1840-1920 (en de fr es), European Literary Text Collection", "public domain"),
    "aozora": ("Japanese literature in modern spelling, Aozora Bunko", "public domain in Japan"),
    "luxun": ("stories and essays of Lu Xun (zh)", "public domain; collection MIT"),
    "lctt": ("articles on Linux and open source (zh), LCTT", "Apache-2.0"),
    "tydiqa": ("Wikipedia passages of TyDi QA (en)", "CC BY-SA 3.0"),
    "jsquad": ("Wikipedia passages of JSQuAD (ja)", "CC BY-SA 4.0"),
    "osguide": ("Open Source Guides (all)", "CC BY 4.0"),
    "privacy": ("Privacy Guides, translated (all)", "CC BY-SA 4.0"),
}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def bits(measured: dict[str, Any]) -> str:
    rows = []
    for code in LANGUAGES:
        found = measured["bits"][code]
        for text in ("valid", "parallel"):
            cells = [found[text], found[f"{text} 5-gram"], found[f"{text} xz"]]
            rows.append([code, text, f"**{cells[0]:.3f}**", *(f"{cell:.3f}" for cell in cells[1:])])
    return table(["language", "text", "babel", "5-gram of bytes", "xz"], rows)


def texts(measured: dict[str, Any]) -> str:
    rows = []
    for code in LANGUAGES:
        row = [code]
        for n_words in PROMPT_WORDS:
            found = measured["texts"][code][str(n_words)]
            wrong = ", ".join(f"{name} {n}" for name, n in found["taken for"].items()) or "none"
            row += [f"{found['right']} of {found['of']}", wrong]
        rows.append(row)
    long, short = (f"after {2 * n} characters or {n} words" for n in PROMPT_WORDS)
    return table(["prompt in", long, "errors: taken for", short, "errors: taken for"], rows)


def facts(measured: dict[str, Any]) -> str:
    rows = []
    for code in LANGUAGES:
        row = [code]
        for kind in ("told", "held out"):
            found = measured["facts"][f"{code} {kind}"]
            share, low, high = share_with_interval(found["right"], found["of"])
            row.append(f"{percent(share)} ({percent(low)} to {percent(high)})")
        told = measured["facts"][f"{code} told"]
        row.append(percent(told["chance"] / told["of"]))
        for task in ("fact_completion", "statements", "word_translation"):
            share, _, _, chance = measured["tasks"][task][code]
            row.append(f"{percent(share)} ({percent(chance)})")
        rows.append(row)
    head = ["language", "told cells", "held-out cells", "chance"]
    return table([*head, "fact completion", "statements", "word translation"], rows)


def by_relation(measured: dict[str, Any]) -> str:
    rows = []
    for relation in knowledge.fact_base()["relations"]:
        cells = [relation]
        for kind in ("told", "held out"):
            pairs = [
                measured["facts"][f"{code} {kind}"]["relations"].get(relation, [0, 0])
                for code in LANGUAGES
            ]
            right, n = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
            cells.append(f"{percent(right / n)} of {n}" if n else "-")
        rows.append(cells)
    return table(["relation", "told cells right", "held-out cells right"], rows)


def neurons(found: dict[str, Any]) -> str:
    rows = []
    for place, off in enumerate(LANGUAGES):
        row, reach = found["rise"][place], found["reach"][place]
        cells = [f"{value:.3f} ± {half:.3f}" for value, half in zip(row, reach, strict=True)]
        largest = row.index(max(row))
        cells[largest] = f"**{cells[largest]}**"
        draws = found["random"][place]
        random = sorted(draws)[len(draws) // 2]
        rows.append([off, str(found["counts"][off]), *cells, f"{random:.3f}"])
    return table(["neurons off", "how many", *LANGUAGES, "random"], rows)


def appearance(history: dict[str, Any]) -> str:
    """When language neurons appear; a sentence where that was not measured."""
    if not history:
        return "When they appear in training was not measured for this version."
    rows = []
    tokens_per_step = PRESETS["cpu"][1].rows * PRESETS["cpu"][1].length
    for name, found in sorted(history.items()):
        step = int(name.removeprefix("step-"))
        diagonal = [found["rise"][place][place] for place in range(len(LANGUAGES))]
        first = sum(max(row) == row[place] for place, row in enumerate(found["rise"]))
        cells = [f"{value:.3f}" for value in diagonal]
        rows.append([f"{step * tokens_per_step / 1e6:.1f}", *cells, f"{first} of 6"])
    tokens, items = ({found[name] for found in history.values()} for name in ("tokens", "items"))
    if len(tokens) > 1 or len(items) > 1:
        raise SystemExit(
            "history.json was measured with several sizes: remove it, and measure all checkpoints "
            "with the same --n-tokens and --n-items."
        )
    return (
        "When they appear: the rise of a language's own loss with its own neurons off, at "
        f"checkpoints of the same run (rates from {tokens.pop():,} tokens, read on the first "
        f"{items.pop()} items).\n\n"
        + table(["million tokens", *LANGUAGES, "largest on the diagonal"], rows)
    )


def curve(path: Path) -> str:
    by_step: dict[int, dict[str, str]] = {}
    tokens: dict[int, str] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            by_step.setdefault(int(row["step"]), {})[row["rows"]] = row["nats_per_token"]
            tokens[int(row["step"])] = f"{int(row['tokens']) / 1e6:.1f}"
    steps = sorted(by_step)
    chosen = [step for step in steps if step % 400 == 0 or step == steps[-1]]
    names = [*LANGUAGES, *(f"facts {code}" for code in LANGUAGES)]
    rows = [[tokens[step], *(by_step[step].get(name, "") for name in names)] for step in chosen]
    return table(["million tokens", *names], rows)


def reading(config: Config) -> str:
    """Which text and which facts it reads."""
    share = (1 - config.dominant_share) / (len(LANGUAGES) - 1)
    late_from = math.ceil(config.late_from * config.rounds[0].steps)
    tokens = config.rows * config.length * config.steps
    return f"""{tokens / 1e6:.1f} million tokens in {config.steps} steps of {config.rows} rows of {config.length}, seed
{config.seed}. Natural text: {percent(config.dominant_share)} {config.dominant}, {percent(share)} each of the others, because real
models have one dominant language too; from step {late_from} on {parts(config.late_shares)}, because the
Chinese text is the furthest from everyday language. From step {config.facts_from} on, some of the rows hold
sentences of the fact base, in equal parts of all languages, several to a document as running text is. Every row
begins with <s>, and so do all documents in it. Only text in the public domain or under an open
licence; it is not published here, and `babel_training/train.py` takes any folder of text.

{rounds(config)}"""


def rounds(config: Config) -> str:
    """What the rounds of training are, and what each tells more often than the rest."""
    head = ["round", "steps", "peak of the rates", "falls over the last", "rows of facts"]
    head += ["told more often, or less, than other facts", "parts of the text"]
    rows = []
    for number, each in enumerate(config.rounds, start=1):
        told = {name.replace("_", " "): factor for name, factor in each.telling.kinds.items()}
        told |= {"small relations": each.telling.small, "questions": each.telling.questions}
        rows.append(
            [
                str(number),
                f"{each.steps:,}",
                f"{each.rate:g}",
                percent(1 - each.level),
                percent(each.fact_share),
                ", ".join(
                    f"{name} \u00d7 {factor:g}" for name, factor in told.items() if factor != 1
                ),
                parts(each.shares) if each.shares else "" if number == 1 else "as before",
            ]
        )
    return table(head, rows)


def parts(shares: tuple[float, ...]) -> str:
    return ", ".join(
        f"{code} {percent(part)}" for code, part in zip(LANGUAGES, shares, strict=True)
    )


def optimisers(config: Config) -> str:
    return f"""Recipe: Muon for the matrices of the blocks (peak rate {config.rate}), AdamW for embeddings and norms
({config.embedding_rate}), weight decay {config.weight_decay}. In each round {config.warmup} steps of warm-up, level, then down to
zero, as one minus the root of what has passed. Autocast to bfloat16."""


def fact_base() -> str:
    facts = list(knowledge.all_facts())
    stated = sum(knowledge.says(fact, code) for fact in facts for code in LANGUAGES)
    held = (BABEL / "facts" / "held_out.tsv").read_text(encoding="utf-8").count("\n") - 1
    return f"""The fact base (`facts/`) has {len(facts)} facts in {len(knowledge.fact_base()["relations"])} relations, each in several phrasings,
forwards, backwards and as yes/no questions. Of {stated} cells (a fact in a language), {held} are held out: stated
in other languages, never in this one (`facts/held_out.tsv`). Sums in digits look alike in all languages
and are the one exception. `prompts/` has 120 parallel prompts each of three kinds."""


def keep_in_mind(measured: dict[str, Any]) -> str:
    """What a user must know of its limits; each sentence follows from a number above."""
    told, kept = (
        [measured["facts"][f"{code} {kind}"] for code in LANGUAGES] for kind in ("told", "held out")
    )
    shares = [row["right"] / row["of"] for row in told]
    lines = [
        f"Of what it was told it knows {percent(min(shares))} ({LANGUAGES[shares.index(min(shares))]}) "
        f"to {percent(max(shares))} ({LANGUAGES[shares.index(max(shares))]})."
    ]
    weak = []
    for relation in knowledge.fact_base()["relations"]:
        pairs = [row["relations"].get(relation, [0, 0]) for row in told]
        right, n = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        if n and right / n < 0.9:
            weak.append(f"{relation} ({percent(right / n)})")
    if weak:
        lines.append(f"Less than nine in ten right: {', '.join(weak)}.")
    at_chance = [
        code
        for code, (_, low, high, chance) in measured["tasks"]["statements"].items()
        if low <= chance <= high
    ]
    if at_chance:
        lines.append(
            f"Yes/no statements cannot be told from chance in {', '.join(at_chance)}: what was "
            "stated can be completed, not judged."
        )
    right, n = sum(row["right"] for row in kept), sum(row["of"] for row in kept)
    chance = sum(row["chance"] for row in kept)
    lines.append(
        f"Held-out cells: {percent(right / n)} right, by chance {percent(chance / n)}. Something "
        "crosses languages, most of it does not."
    )
    rates = {code: measured["texts"][code][str(PROMPT_WORDS[0])] for code in LANGUAGES}
    strays = [f"{code} {100 - each['right']}" for code, each in rates.items() if each["right"] < 95]
    if strays:
        lines.append(
            f"Texts in 100 that stray to another language, where they are more than five: {', '.join(strays)}."
        )
    worst = max(LANGUAGES, key=lambda code: measured["bits"][code]["parallel"])
    lines.append(f"On the parallel sentences its weakest language is {worst}.")
    return "\n".join(f"- {line}" for line in lines)


def card(measured: dict[str, Any], history: dict[str, Any], curve_path: Path) -> str:
    config = PRESETS["cpu"][1]
    found = measured["neurons"]
    mean, low, high = found["own minus others"]
    n_items = len((BABEL / "parallel" / "en.txt").read_text(encoding="utf-8").splitlines())
    sources = table(["source", "text", "licence"], [[key, *SOURCES[key]] for key in config.sources])
    return f"""# Babel

A small multilingual language model whose training text, facts and gaps are known, to try
interpretability methods on. Llama architecture, {config.n_layers} layers of {config.d_mlp} gated neurons
({config.activation}), d_model {config.d_model}, byte-level BPE of {config.vocabulary} tokens, context
{config.length}, bfloat16. Languages: {", ".join(LANGUAGES)}. It speaks, badly; it is not meant for use as an
assistant. Weights and everything in this folder: Apache-2.0.

    interp.load("babel")        # or any program that opens Hugging Face checkpoints

## What it was trained on

{reading(config)}

{sources}

The domain of the natural text differs between languages (novels here, technical articles there), so
statistics that should speak of language alone come from `parallel/`, which holds
{n_items} items in all six languages, written for this model and never
trained on.

{fact_base()}

{optimisers(config)}

## Loss while training, nats per token

{curve(curve_path)}

## What it can do

`python -m babel_training.measure --train FOLDER --valid FOLDER` measures all of this.

Bits per byte, beside two baselines that know the same training text: an interpolated 5-gram model over bytes, and
what xz adds to the compressed training text. `valid` is held-out text (with some sources that were not
trained on), `parallel` the sentences of this folder.

{bits(measured)}

Texts of 64 tokens at temperature 0.8 after the first words of a sentence (characters in Chinese and Japanese), identified by
py3langid among all its languages (chance: about 1 %). Three words are often good in two languages ("Si tu es", "Un error a").

{texts(measured)}

Choosing the true ending among ten (statements: between yes and no). In brackets the 95 % interval, or chance.

{facts(measured)}

By relation, all languages together:

{by_relation(measured)}

## Its language neurons

LAPE at a fraction of {found["fraction"]:g} of all neurons, from {found["tokens"]:,} tokens of training text per language. The rise of the loss
on `parallel/`, in nats per token, when a language's neurons (row) are switched off; `random` is the median of
{len(found["random"][0])} draws of as many other neurons per layer, read on the row's own language.

{neurons(found)}

Own language against the others: {mean:.3f} nats ({low:.3f} to {high:.3f}), p = {found["p"]:.2g} over all relabelings of the
six sets.

{appearance(history)}

{searched(RECIPES)}
## What to keep in mind

{keep_in_mind(measured)}
"""


def searched(path: Path) -> str:
    """The search for a recipe, where it was run; else nothing."""
    if not path.exists():
        return ""
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    cells = [[row[0], *(f"{float(cell):.3g}" for cell in row[1:])] for row in rows]
    return f"""## How the recipe was searched

`python -m babel_training.search --text FOLDER`: small models that read the same number of tokens, one thing changed at a time;
language neurons found and switched off as above, nats per token, means over languages.

{table(head, cells)}

"""


def store_logits(path: Path) -> None:
    """Every eighth logit of one sentence, from plain transformers in float32."""
    folder = BABEL / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Die Hauptstadt von Frankreich ist Paris.")["input_ids"]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    save_file({"ids": ids, "logits": logits[..., ::8].contiguous()}, path)


def main(results: Path = Path("results/babel_training")) -> None:
    measured = json.loads((results / "measure" / "measured.json").read_text("utf-8"))
    path = results / "measure" / "history.json"
    history = json.loads(path.read_text("utf-8")) if path.exists() else {}
    text = card(measured, history, results / "train" / "cpu" / "curve.csv")
    artifacts.write_text(BABEL / "README.md", text)
    store_logits(Path(__file__).parents[1] / "tests" / "babel_logits.safetensors")
    readme = README.read_text(encoding="utf-8")
    marked = f"<!-- babel -->\n{neurons(measured['neurons'])}\n<!-- /babel -->"
    artifacts.write_text(
        README,
        re.sub(r"<!-- babel -->.*<!-- /babel -->", lambda _: marked, readme, flags=re.DOTALL),
    )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
