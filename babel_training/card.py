"""Write Babel's card from the measurements.

    python -m babel_training.card      # a second

Reads   measure/measured.json, measure/history.json, train/cpu/curve.csv of results/babel_training
Writes  interp/babel/README.md;
        tests/babel_logits.safetensors, against which other machines check how they read the weights
"""

import csv
import json
import math
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
        by_text = measured["bits"][code]
        for text in ("valid", "parallel"):
            cells = [by_text[text], by_text[f"{text} 5-gram"], by_text[f"{text} xz"]]
            rows.append([code, text, f"**{cells[0]:.3f}**", *(f"{cell:.3f}" for cell in cells[1:])])
    return table(["language", "text", "babel", "5-gram of bytes", "xz"], rows)


def texts(measured: dict[str, Any]) -> str:
    rows = []
    for code in LANGUAGES:
        row = [code]
        for n_words in PROMPT_WORDS:
            counts = measured["texts"][code][str(n_words)]
            wrong = ", ".join(f"{name} {n}" for name, n in counts["taken for"].items()) or "none"
            row += [f"{counts['right']} of {counts['of']}", wrong]
        rows.append(row)
    long, short = (f"after {2 * n} characters or {n} words" for n in PROMPT_WORDS)
    return table(["prompt in", long, "errors: identified as", short, "errors: identified as"], rows)


def facts(measured: dict[str, Any]) -> str:
    rows = []
    for code in LANGUAGES:
        row = [code]
        for kind in ("told", "held out"):
            counts = measured["facts"][f"{code} {kind}"]
            share, low, high = share_with_interval(counts["right"], counts["of"])
            row.append(f"{percent(share)} ({percent(low)} to {percent(high)})")
        told = measured["facts"][f"{code} told"]
        row.append(percent(told["chance"] / told["of"]))
        for task in ("fact_completion", "statements", "word_translation"):
            share, _, _, chance = measured["tasks"][task][code]
            row.append(f"{percent(share)} ({percent(chance)})")
        rows.append(row)
    head = ["language", "told cells", "held-out cells", "chance"]
    return table([*head, "fact completion", "statements", "word translation"], rows)


def of_relation(measured: dict[str, Any], relation: str, kind: str) -> tuple[int, int]:
    """Right answers and cells of a relation, all languages together."""
    by_language = [measured["facts"][f"{code} {kind}"]["relations"] for code in LANGUAGES]
    pairs = [relations.get(relation, [0, 0]) for relations in by_language]
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def by_relation(measured: dict[str, Any]) -> str:
    rows = []
    for relation in knowledge.fact_base()["relations"]:
        cells = [relation]
        for kind in ("told", "held out"):
            right, n = of_relation(measured, relation, kind)
            cells.append(f"{percent(right / n)} of {n}" if n else "-")
        rows.append(cells)
    return table(["relation", "told cells right", "held-out cells right"], rows)


def neurons(measured: dict[str, Any]) -> str:
    rows = []
    for index, off in enumerate(LANGUAGES):
        row, reach = measured["rise"][index], measured["reach"][index]
        cells = [f"{value:.3f} ± {half:.3f}" for value, half in zip(row, reach, strict=True)]
        largest = row.index(max(row))
        cells[largest] = f"**{cells[largest]}**"
        draws = measured["random"][index]
        random = sorted(draws)[len(draws) // 2]
        rows.append([off, str(measured["counts"][off]), *cells, f"{random:.3f}"])
    return table(["neurons off", "how many", *LANGUAGES, "random"], rows)


def appearance(history: dict[str, Any]) -> str:
    """When language neurons appear in training, or a sentence that says it was not measured."""
    if not history:
        return "When they appear in training was not measured for this version."
    rows = []
    tokens_per_step = PRESETS["cpu"][1].rows * PRESETS["cpu"][1].length
    for name, measured in sorted(history.items()):
        step = int(name.removeprefix("step-"))
        rise = measured["rise"]
        diagonal = [row[index] for index, row in enumerate(rise)]
        led = sum(max(row) == row[index] for index, row in enumerate(rise))
        cells = [f"{value:.3f}" for value in diagonal]
        rows.append([f"{step * tokens_per_step / 1e6:.1f}", *cells, f"{led} of 6"])
    tokens, items = ({row[name] for row in history.values()} for name in ("tokens", "items"))
    if len(tokens) > 1 or len(items) > 1:
        raise SystemExit(
            "The checkpoints in history.json were measured with different sizes: remove the file, "
            "and measure all of them with the same --n-tokens and --n-items."
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
    """Which text and facts Babel is trained on."""
    share = (1 - config.dominant_share) / (len(LANGUAGES) - 1)
    late_from = math.ceil(config.late_from * config.rounds[0].steps)
    tokens = config.rows * config.length * config.steps
    return f"""{tokens / 1e6:.1f} million tokens in {config.steps} steps of {config.rows} rows of {config.length}, seed
{config.seed}. Natural text: {percent(config.dominant_share)} {config.dominant}, {percent(share)} each of the others, because real
models have one dominant language too; from step {late_from} on {parts(config.late_shares)}, because the
Chinese text is the furthest from everyday language. From step {config.facts_from} on, some rows hold
sentences of the fact base, equally many in each language, several per document as in running text. Every row
begins with `<s>`, and so does every document in it. All text is in the public domain or under an open
license; it is not published here, but `babel_training/train.py` takes any folder of text.

{rounds(config)}"""


def rounds(config: Config) -> str:
    """The rounds of training, and the weight that each gives to kinds of facts."""
    head = ["round", "steps", "relative peak rate", "decays over the last", "rows of facts"]
    head += ["weight relative to other facts", "mix of the text"]
    rows = []
    for number, stage in enumerate(config.rounds, start=1):
        factors = {name.replace("_", " "): factor for name, factor in stage.telling.kinds.items()}
        factors |= {"small relations": stage.telling.small, "questions": stage.telling.questions}
        rows.append(
            [
                str(number),
                f"{stage.steps:,}",
                f"{stage.rate:g}",
                percent(1 - stage.level),
                percent(stage.fact_share),
                ", ".join(
                    f"{name} \u00d7 {factor:g}" for name, factor in factors.items() if factor != 1
                ),
                parts(stage.shares) if stage.shares else "" if number == 1 else "as before",
            ]
        )
    return table(head, rows)


def parts(shares: tuple[float, ...]) -> str:
    return ", ".join(
        f"{code} {percent(part)}" for code, part in zip(LANGUAGES, shares, strict=True)
    )


def optimizers(config: Config) -> str:
    return f"""Recipe: Muon for the matrices of the blocks (peak rate {config.rate}, weight decay {config.weight_decay}), AdamW for embeddings
and norms ({config.embedding_rate}). In each round: {config.warmup} steps of warm-up, a plateau, then decay to
zero as one minus the square root of the part passed. Autocast to bfloat16."""


def fact_base() -> str:
    facts = list(knowledge.all_facts())
    stated = sum(knowledge.says(fact, code) for fact in facts for code in LANGUAGES)
    held = (BABEL / "facts" / "held_out.tsv").read_text(encoding="utf-8").count("\n") - 1
    return f"""The fact base (`facts/`) has {len(facts)} facts in {len(knowledge.fact_base()["relations"])} relations, each in several phrasings,
forwards, backwards and as yes/no questions. Of {stated} cells (a fact in a language), {held} are held out: stated
in other languages, never in this one (`facts/held_out.tsv`). The one exception is sums in digits, which look
alike in all languages. `prompts/` has 120 parallel prompts for each of three tasks."""


def keep_in_mind(measured: dict[str, Any]) -> str:
    """The limits that a user must know; each sentence follows from a number above."""
    told, held_out = (
        [measured["facts"][f"{code} {kind}"] for code in LANGUAGES] for kind in ("told", "held out")
    )
    shares = [row["right"] / row["of"] for row in told]
    lines = [
        f"It knows {percent(min(shares))} ({LANGUAGES[shares.index(min(shares))]}) "
        f"to {percent(max(shares))} ({LANGUAGES[shares.index(max(shares))]}) of its told cells."
    ]
    weak = []
    for relation in knowledge.fact_base()["relations"]:
        right, n = of_relation(measured, relation, "told")
        if n and right / n < 0.9:
            weak.append(f"{relation} ({percent(right / n)})")
    if weak:
        lines.append(f"Relations with less than 90 % of told cells right: {', '.join(weak)}.")
    at_chance = [
        code
        for code, (_, low, high, chance) in measured["tasks"]["statements"].items()
        if low <= chance <= high
    ]
    if at_chance:
        lines.append(
            f"Yes/no statements are at chance in {', '.join(at_chance)}: stated facts can be "
            "completed but not judged."
        )
    right, n = (sum(row[name] for row in held_out) for name in ("right", "of"))
    chance = sum(row["chance"] for row in held_out)
    lines.append(
        f"Held-out cells: {percent(right / n)} right (chance {percent(chance / n)}). Some relations "
        "transfer between languages, others do not."
    )
    rates = {code: measured["texts"][code][str(PROMPT_WORDS[0])] for code in LANGUAGES}
    strays = [f"{code} {100 - row['right']}" for code, row in rates.items() if row["right"] < 95]
    if strays:
        lines.append(
            f"Texts of 100 that stray to another language, where more than five do: {', '.join(strays)}."
        )
    worst = max(LANGUAGES, key=lambda code: measured["bits"][code]["parallel"])
    lines.append(f"Its weakest language on the parallel sentences is {worst}.")
    return "\n".join(f"- {line}" for line in lines)


def card(measured: dict[str, Any], history: dict[str, Any], curve_path: Path) -> str:
    config = PRESETS["cpu"][1]
    effects = measured["neurons"]
    mean, low, high = effects["own minus others"]
    n_items = len((BABEL / "parallel" / "en.txt").read_text(encoding="utf-8").splitlines())
    sources = table(["source", "text", "license"], [[key, *SOURCES[key]] for key in config.sources])
    return f"""# Babel

A small multilingual language model for trying interpretability methods: its training text, facts
and gaps are known. Llama architecture, {config.n_layers} layers of {config.d_mlp} gated neurons
({config.activation}), d_model {config.d_model}, byte-level BPE of {config.vocabulary} tokens, context
{config.length}, bfloat16. Languages: {", ".join(LANGUAGES)}. It writes poorly and is not meant as an
assistant. Weights and everything in this folder: Apache-2.0.

    interp.load("babel")        # or any program that opens Hugging Face checkpoints

## What it was trained on

{reading(config)}

{sources}

The domain of the natural text differs between languages (novels in one, technical articles in another), so
statistics meant to reflect language alone come from `parallel/`: {n_items} items in all six languages, written
for this model and never trained on.

{fact_base()}

{optimizers(config)}

## Loss while training, nats per token

{curve(curve_path)}

## What it can do

`python -m babel_training.measure --train FOLDER --valid FOLDER` measures all of this.

Bits per byte, with two baselines that have the same training text: an interpolated 5-gram model over bytes, and
what xz adds to the compressed training text. `valid` is held-out text (with some sources that were not
trained on), `parallel` the sentences of this folder.

{bits(measured)}

Texts of 64 tokens at temperature 0.8 after the first words of a sentence (characters in Chinese and Japanese), identified by
py3langid among all its languages (chance: about 1 %). Three words are often valid in two languages ("Si tu es", "Un error a").

{texts(measured)}

Choosing the true ending among ten (statements: between yes and no). A told cell is a fact that the training text
states in that language. Brackets hold the 95 % interval, or chance.

{facts(measured)}

By relation, all languages together:

{by_relation(measured)}

## Its language neurons

LAPE at a fraction of {effects["fraction"]:g} of all neurons, from {effects["tokens"]:,} tokens of training text per language. The table has
the rise of the loss on `parallel/`, in nats per token ± half the 95 % interval, when a language's neurons (row) are
switched off; `random` is the median of {len(effects["random"][0])} random sets of the same size per layer, read on the row's own language.

{neurons(effects)}

Own language minus the others: {mean:.3f} nats ({low:.3f} to {high:.3f}), p = {effects["p"]:.2g} over all relabelings of the
six sets.

{appearance(history)}

{searched(RECIPES)}
## What to keep in mind

{keep_in_mind(measured)}
"""


def searched(path: Path) -> str:
    """The search for a recipe; empty if it was not run."""
    if not path.exists():
        return ""
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    cells = [[row[0], *(f"{float(cell):.3g}" for cell in row[1:])] for row in rows]
    return f"""## How the recipe was searched

`python -m babel_training.search --text FOLDER`: small models trained on the same number of tokens, with one thing changed at a time;
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


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
