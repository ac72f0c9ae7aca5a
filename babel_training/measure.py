"""Is Babel a real language model with facts, gaps and language neurons? The numbers on its card.

    python -m babel_training.measure --train FOLDER --valid FOLDER     # 15 minutes on 2 cores
    python -m babel_training.measure --history FOLDER --train FOLDER   # when do neurons appear?
                                        --n-tokens 20000 --n-items 240    # as on the card

Reads   a model folder; its training text and held-out text, <language>.txt[.gz];
        interp/babel/parallel, interp/babel/facts
Writes  results/babel_training/measure/measured.json, for `interp/babel/README.md`, or history.json
"""

import hashlib
import json
import lzma
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

import interp
from babel_training import knowledge
from babel_training.corpus import documents_of, read_lines
from babel_training.knowledge import LANGUAGES, Completion
from babel_training.recipe import OPEN_SOURCES
from interp.inference.intervals import wilson
from interp.results import artifacts

FRACTION = 0.03
"""Share of all neurons called language-specific, fixed on earlier checkpoints."""

PROMPT_WORDS = (6, 3)
"""Words in the prompts that texts continue; the first length is the one that counts."""


@dataclass(frozen=True)
class Config:
    """What to measure, and on what."""

    model: str = "babel"
    """The shipped model, or a folder."""

    train: Path | None = None
    """Folder of the training text, for the compression baselines and the firing rates."""

    valid: Path | None = None
    """Folder of held-out text of the same sources."""

    history: Path | None = None
    """Folder of checkpoints step-00400, step-00800, ...: measure the neuron effect of each."""

    out: Path = Path("results/babel_training/measure")
    """Folder for measured.json and history.json."""

    n_texts: int = 100
    """Texts sampled per language for identification."""

    valid_bytes: int = 200_000
    """Bytes of held-out text read per language."""

    n_items: int = 400
    """Parallel items read under each intervention."""

    n_tokens: int = 60_000
    """Tokens of training text per language, for the firing rates."""

    n_draws: int = 3
    """Random neuron sets per language, of the same size per layer."""

    n_cells: int = 40
    """Maximum number of cells per relation, language and kind (told or held out)."""

    seed: int = 0
    """Seeds samples and random sets."""


# ---------------------------------------------------------------- bits per byte


def nats(model: interp.NeuronModel, texts: list[str], length: int = 512) -> Float[Tensor, " text"]:
    """Total nats of each text, read in independent pieces of `length` tokens, <s> included."""
    assert model.bos_id is not None
    pieces: list[tuple[int, list[int]]] = []
    for number, ids in enumerate(model.encode_batch(texts)):
        for start in range(0, len(ids), length - 1):
            pieces.append((number, [model.bos_id, *ids[start : start + length - 1]]))
    pieces.sort(key=lambda piece: len(piece[1]))
    total = torch.zeros(len(texts), dtype=torch.float64)
    while pieces:
        widest = len(pieces[-1][1])
        batch = [pieces.pop() for _ in range(min(len(pieces), max(1, 4096 // widest)))]
        ids = torch.zeros(len(batch), widest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (_, piece) in enumerate(batch):
            ids[row, : len(piece)] = torch.tensor(piece)
            mask[row, : len(piece)] = 1
        with torch.inference_mode():
            logits = model.logits(ids, mask)[:, :-1].float()
        loss = functional.cross_entropy(
            rearrange(logits, "batch pos vocab -> batch vocab pos"), ids[:, 1:], reduction="none"
        )
        per_row = reduce(loss * mask[:, 1:], "batch pos -> batch", "sum")
        for row, (number, _) in enumerate(batch):
            total[number] += per_row[row].item()
    return total


def bits_per_byte(model: interp.NeuronModel, texts: list[str]) -> float:
    n_bytes = sum(len(text.encode()) for text in texts)
    return nats(model, texts).sum().item() / math.log(2) / n_bytes


def xz_bits_per_byte(train: bytes, text: bytes) -> float:
    """Bits per byte that the text adds to the compressed training text."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26}]
    before = len(lzma.compress(train, lzma.FORMAT_RAW, filters=filters))
    both = len(lzma.compress(train + text, lzma.FORMAT_RAW, filters=filters))
    return 8 * (both - before) / len(text)


def ngram_bits_per_byte(train: bytes, text: bytes, order: int = 5) -> float:
    """Bits per byte under an interpolated n-gram model over bytes (Witten-Bell)."""
    probability = np.full(len(text), 1 / 256)
    train_bytes = np.frombuffer(train, np.uint8).astype(np.uint64)
    text_bytes = np.frombuffer(text, np.uint8).astype(np.uint64)
    for n in range(1, order + 1):
        grams, counts = np.unique(_pack(train_bytes, n), return_counts=True)
        contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
        total = np.add.reduceat(counts, first)
        kinds = np.diff(np.append(first, len(grams)))
        wanted = _pack(text_bytes, n)
        count = _look_up(grams, counts, wanted)
        seen_before = _look_up(contexts, total, wanted >> np.uint64(8))
        followers = _look_up(contexts, kinds, wanted >> np.uint64(8))
        known = seen_before > 0
        share = probability[n - 1 :][known]
        probability[n - 1 :][known] = (count[known] + followers[known] * share) / (
            seen_before[known] + followers[known]
        )
    return float(-np.log2(probability).mean())


def _pack(data: np.ndarray, n: int) -> np.ndarray:
    """Every run of n bytes as one integer, the last byte lowest."""
    packed = np.zeros(len(data) - n + 1, np.uint64)
    for offset in range(n):
        packed = (packed << np.uint64(8)) | data[offset : offset + len(packed)]
    return packed


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    index = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], 0)


def baselines(train: bytes, text: bytes, out: Path) -> dict[str, float]:
    """Both baselines, cached in a file named by a hash of the texts, because xz is slow."""
    key = hashlib.blake2b(train + b"\0" + text, digest_size=8).hexdigest()
    path = out / "baselines" / f"{key}.json"
    if not path.exists():
        bits = {"xz": xz_bits_per_byte(train, text), "5-gram": ngram_bits_per_byte(train, text)}
        artifacts.write_text(path, json.dumps(bits))
    return json.loads(path.read_text())


def held_out_documents(folder: Path, language: str, n_bytes: int) -> list[str]:
    """The first held-out documents, up to about `n_bytes`; the last one is cut."""
    documents, left = [], n_bytes
    for document in documents_of(read_lines(folder, language, ())):
        documents.append(document.encode()[:left].decode(errors="ignore"))
        left -= len(document.encode())
        if left <= 0:
            break
    return documents


def measure_bits(
    model: interp.NeuronModel | None, config: Config, parallel: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    """Bits per byte of Babel and the baselines; None as the model: the baselines alone."""
    table: dict[str, dict[str, float]] = {}
    for language in tqdm(LANGUAGES, desc="bits per byte"):
        texts = {"parallel": parallel[language]}
        if config.valid:
            texts["valid"] = held_out_documents(config.valid, language, config.valid_bytes)
        row: dict[str, float] = {}
        for name, documents in texts.items():
            if model is not None:
                row[name] = bits_per_byte(model, documents)
            if config.train:
                pairs = read_lines(config.train, language, OPEN_SOURCES)
                train = "\n".join(documents_of(pairs)).encode()
                both = baselines(train, "\n".join(documents).encode(), config.out)
                row |= {f"{name} {baseline}": bits for baseline, bits in both.items()}
        table[language] = row
    return table


# ---------------------------------------------------------------- texts


def sample_texts(
    model: interp.NeuronModel, prompts: list[str], n_tokens: int, seed: int
) -> list[str]:
    """Continuations at temperature 0.8, without their prompts."""
    torch.manual_seed(seed)
    assert model.bos_id is not None
    encoded = [[model.bos_id, *ids] for ids in model.encode_batch(prompts)]
    widest = max(len(ids) for ids in encoded)
    ids = torch.full((len(encoded), widest), 2)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(encoded):
        ids[row, widest - len(prompt) :] = torch.tensor(prompt)
        mask[row, widest - len(prompt) :] = 1
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0}
    lengths = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens}
    out = model.continuations(ids, mask, **sampling, **lengths)[:, widest:]
    special = set(model.special_ids)
    return [model.decode([token for token in row if token not in special]) for row in out.tolist()]


def short_prompt(text: str, language: str, n_words: int) -> str:
    """The first words of a sentence, or twice as many characters in Chinese and Japanese."""
    return text[: 2 * n_words] if language in ("zh", "ja") else " ".join(text.split()[:n_words])


def measure_texts(
    model: interp.NeuronModel, config: Config, parallel: dict[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """Texts after the first words of a sentence, counted by the language they are identified as.

    Three words are often valid in two languages ("Si tu es", "Un error a"), and continuing in the
    other one is not an error of the model. So there are prompts of two lengths.
    """
    table: dict[str, dict[str, Any]] = {}
    for language in tqdm(LANGUAGES, desc="texts"):
        for n_words in PROMPT_WORDS:
            prompts = [
                short_prompt(text, language, n_words)
                for text in parallel[language][: config.n_texts]
            ]
            texts = sample_texts(model, prompts, 64, config.seed)
            detected = interp.detect_language(texts)
            wrong = sorted({code for code in detected if code != language})
            table.setdefault(language, {})[str(n_words)] = {
                "right": sum(code == language for code in detected),
                "of": len(texts),
                "taken for": {code: detected.count(code) for code in wrong},
                "example": prompts[0] + "|" + texts[0],
            }
    return table


# ---------------------------------------------------------------- facts


def choose(model: interp.NeuronModel, items: list[Completion]) -> Bool[Tensor, " item"]:
    """Whether the true ending makes the likeliest sentence."""
    sentences = [item.prompt + ending for item in items for ending in item.endings]
    scores = -nats(model, sentences)
    right, start = [], 0
    for item in items:
        best = scores[start : start + len(item.endings)].argmax()
        right.append(int(best) == item.answer)
        start += len(item.endings)
    return torch.tensor(right)


def share_with_interval(right: int, n: int) -> tuple[float, float, float]:
    """A share and the ends of its 95 % Wilson interval; NaN if n is 0."""
    if n == 0:
        return math.nan, math.nan, math.nan
    return right / n, *wilson(right / n, n)


def measure_facts(model: interp.NeuronModel, config: Config) -> dict[str, dict[str, Any]]:
    """How often the true ending wins among ten, for told and held-out cells."""
    table: dict[str, dict[str, Any]] = {}
    random = np.random.default_rng(config.seed)
    for relation in tqdm(knowledge.fact_base()["relations"], desc="facts"):
        facts = knowledge.facts_of(relation)
        order = [facts[index] for index in random.permutation(len(facts))]
        for language in LANGUAGES:
            stated = [fact for fact in order if knowledge.says(fact, language)]
            for name, held_out in (("told", False), ("held out", True)):
                cells = [f for f in stated if knowledge.held_out_in(f, language) == held_out]
                items = [knowledge.completion(f, language) for f in cells[: config.n_cells]]
                right = int(choose(model, items).sum()) if items else 0
                chance = sum(1 / len(item.endings) for item in items)
                key = f"{language} {name}"
                row = table.setdefault(key, {"right": 0, "of": 0, "chance": 0.0, "relations": {}})
                row["right"] += right
                row["of"] += len(items)
                row["chance"] += chance
                row["relations"][relation] = [right, len(items)]
    return table


def measure_tasks(model: interp.NeuronModel) -> dict[str, dict[str, list[float]]]:
    """Accuracy on the shipped prompts that are not held out: [share, low, high, chance]."""
    table: dict[str, dict[str, list[float]]] = {}
    for language in LANGUAGES:
        path = knowledge.BABEL / "prompts" / f"{language}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        by_task: dict[str, list[Completion]] = {}
        for row in rows:
            if not row["held_out"]:
                item = Completion(
                    knowledge.Fact(row["id"], (), ""),
                    row["text"],
                    tuple(row["endings"]),
                    row["answer"],
                )
                by_task.setdefault(row["id"].split("/")[0], []).append(item)
        for task, items in by_task.items():
            right = int(choose(model, items).sum())
            chance = sum(1 / len(item.endings) for item in items) / len(items)
            share = share_with_interval(right, len(items))
            table.setdefault(task, {})[language] = [*share, chance]
    return table


# ---------------------------------------------------------------- language neurons


def measure_neurons(
    model: interp.NeuronModel, config: Config, texts: dict[str, list[str]], fraction: float
) -> dict[str, Any]:
    """Rise of the loss, in nats per token; rows: whose neurons are off, columns: language read.

    `reach` is half its 95 % interval; `random` is the rise in each draw of as many random neurons.
    """
    assert config.train is not None
    source = {
        language: list(documents_of(read_lines(config.train, language, OPEN_SOURCES)))
        for language in LANGUAGES
    }
    corpora = interp.read_corpora(
        source, LANGUAGES, model, tokens=config.n_tokens, n_shards=10, progress=False
    )
    stats = interp.collect(model, corpora, progress=False).firing
    selection = interp.select_by_entropy(stats, fraction=fraction)
    # Each row starts with <s>, as in training, so that all of its text tokens are predicted.
    reading = interp.read_corpora(
        texts, LANGUAGES, model, block_length=256, n_shards=10, bos="block", progress=False
    )
    matrix = interp.perplexity_matrix(
        model,
        selection,
        reading,
        n_draws=config.n_draws,
        generator=torch.Generator().manual_seed(config.seed),
        progress=False,
    )
    own = torch.arange(len(LANGUAGES))
    test = matrix.diagonal()
    return {
        "fraction": fraction,
        "tokens": config.n_tokens,
        "counts": selection.counts(),
        "profile": selection.layer_profile().tolist(),
        "rise": matrix.increase.value.tolist(),
        "reach": ((matrix.increase.high - matrix.increase.low) / 2).tolist(),
        "random": matrix.random_increase.value[:, own, own].T.tolist(),
        "loss": dict(zip(LANGUAGES, matrix.losses.loss[0].tolist(), strict=True)),
        "own minus others": [test.mean.value.item(), test.mean.low.item(), test.mean.high.item()],
        "p": test.test.p_value,
    }


def show_matrix(effects: dict[str, Any]) -> str:
    lines = [f"neurons off | {'  '.join(f'{code:>6}' for code in LANGUAGES)} | random | neurons"]
    for code, row, draws in zip(LANGUAGES, effects["rise"], effects["random"], strict=True):
        cells = "  ".join(f"{value:6.3f}" for value in row)
        lines.append(
            f"{code:>11} | {cells} | {sorted(draws)[len(draws) // 2]:6.3f} | "
            f"{effects['counts'][code]}"
        )
    return "\n".join(lines)


def running_text(lines: list[str], per_document: int = 20) -> list[str]:
    """Documents of items, one per line, as in the training text."""
    return [
        "\n".join(lines[start : start + per_document])
        for start in range(0, len(lines), per_document)
    ]


def main(config: Config) -> None:
    items = {
        code: (knowledge.BABEL / "parallel" / f"{code}.txt").read_text("utf-8").splitlines()
        for code in LANGUAGES
    }
    parallel = {code: running_text(lines) for code, lines in items.items()}
    some = {code: running_text(lines[: config.n_items]) for code, lines in items.items()}
    if config.history is not None:
        path = config.out / "history.json"  # written after each checkpoint, for resuming
        curve = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for folder in sorted(config.history.glob("step-*")):
            if folder.name not in curve:
                effects = measure_neurons(interp.load(folder), config, some, FRACTION)
                curve[folder.name] = effects | {"items": config.n_items}
                artifacts.write_text(path, json.dumps(curve, indent=1))
            print(f"{folder.name}\n{show_matrix(curve[folder.name])}", flush=True)
        return
    model = interp.load(config.model)
    measured: dict[str, Any] = {"bits": measure_bits(model, config, parallel)}
    print(json.dumps(measured["bits"], indent=1), flush=True)
    measured["texts"] = measure_texts(model, config, items)
    print(json.dumps(measured["texts"], indent=1, ensure_ascii=False), flush=True)
    measured["facts"] = measure_facts(model, config)
    for key, row in measured["facts"].items():
        share, low, high = share_with_interval(row["right"], row["of"])
        print(f"{key}: {share:.3f} [{low:.3f}, {high:.3f}] of {row['of']}", flush=True)
    measured["tasks"] = measure_tasks(model)
    print(json.dumps(measured["tasks"], indent=1), flush=True)
    if config.train is not None:
        measured["neurons"] = measure_neurons(model, config, some, FRACTION)
        print(show_matrix(measured["neurons"]), flush=True)
    text = json.dumps(measured, indent=1, ensure_ascii=False)
    artifacts.write_text(config.out / "measured.json", text)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
