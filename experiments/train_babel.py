"""Train Babel, the small multilingual model that the package ships.

    python -m experiments.train_babel tiny                  # seconds; a made-up text
    python -m experiments.train_babel cpu --text FOLDER     # 3.5 hours on 2 cores
    python -m experiments.train_babel gpu --text FOLDER     # the same recipe, ten times the tokens

Reads   FOLDER/<language>.txt[.gz], with FOLDER/<language>.src.gz to choose lines by their source;
        interp/babel/facts/*.json
Writes  results/train_babel/<preset>/: tokenizer, checkpoint, curve.csv, the finished model

The shipped model has read the first two rounds of the recipe, 8100 steps, which are the same with
or without the third.

A run that is killed goes on from its last checkpoint and ends with the same weights as one that
was not: every batch is drawn from a generator seeded with the step's number.
"""

import csv
import gzip
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments import babel_facts
from interp import artifacts

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
OPEN_SOURCES = ("eltec", "aozora", "luxun", "lctt", "tydiqa", "jsquad", "osguide", "privacy")


@dataclass(frozen=True)
class Round:
    """The learning rate rises, stays and falls to zero, as one minus the root of what has passed.
    Early and fast, because facts are learned at low rates: at the peak their loss hardly moves."""

    steps: int
    """Optimiser steps."""

    rate: float
    """Peak of the learning rates, as part of the recipe's."""

    level: float
    """Part of the round after which they fall."""

    fact_share: float
    """Share of the rows that hold sentences of the fact base."""

    telling: babel_facts.Telling
    """How often each fact is told."""

    shares: tuple[float, ...] = ()
    """The languages' parts of the natural text; none: as before."""


FIRST, SECOND, THIRD = babel_facts.ROUNDS


@dataclass(frozen=True)
class Config:
    """Everything that decides which weights come out."""

    text: Path = Path("text")
    """Folder of <language>.txt or .txt.gz, a paragraph per line."""

    sources: tuple[str, ...] = OPEN_SOURCES
    """Use only lines of these sources where <language>.src.gz names them; empty: every line."""

    languages: tuple[str, ...] = ("en", "de", "fr", "es", "zh", "ja")
    """ISO codes."""

    dominant: str = "en"
    """The language that gets more of the natural text than the others, as in real models."""

    dominant_share: float = 0.30
    """Its share of the natural text; the others have equal parts of the rest."""

    late_shares: tuple[float, ...] = (0.14, 0.16, 0.16, 0.16, 0.22, 0.16)
    """The languages' parts of the natural text from `late_from` on; none: unchanged.
    Chinese gets most: its text is technical, and furthest from everyday language."""

    late_from: float = 0.65
    """Part of the first round after which the late shares hold."""

    facts_from: int = 600
    """First step that sees the fact base."""

    passage: float = 3.0
    """Mean number of paragraphs between <s> and </s>, so that <s> says that any text begins."""

    fact_group: float = 12.0
    """Mean number of fact sentences between <s> and </s>, one per line."""

    vocabulary: int = 16384
    """Byte-level BPE tokens, learned from equally many bytes per language and the fact base."""

    name_weight: int = 200
    """How often the tokenizer reads each name of the fact base: most become one token, so an
    answer is one prediction and a fact sentence takes 11 tokens instead of 16."""

    d_model: int = 256
    """Width of the residual stream."""

    d_mlp: int = 2048
    """Neurons per layer."""

    n_layers: int = 6
    """Blocks."""

    n_heads: int = 4
    """Attention heads of d_model / n_heads; eight cost a fifth more time per step."""

    activation: str = "relu"
    """Of the gate. ReLU leaves most neurons silent on a token, so language neurons appear early."""

    length: int = 512
    """Tokens per row, and the model's context."""

    rows: int = 8
    """Rows per step; twice as many learned no more per step in the first million tokens."""

    rounds: tuple[Round, ...] = (
        Round(5100, rate=1.0, level=0.455, fact_share=0.55, telling=FIRST),
        Round(3000, rate=0.5, level=0.2, fact_share=0.4, telling=SECOND),
        Round(
            4000,
            rate=0.5,
            level=0.2,
            fact_share=0.3,
            telling=THIRD,
            shares=(0.18, 0.14, 0.20, 0.22, 0.14, 0.12),
        ),
    )
    """The second tells sums and small relations more often; the third reads more text, most of it
    of the languages whose texts strayed, and asks more."""

    warmup: int = 100
    """Steps of rising learning rate, in each round."""

    rate: float = 8e-3
    """Learning rate of the Muon optimiser (matrices of the blocks)."""

    embedding_rate: float = 4e-3
    """Learning rate of AdamW (embeddings and norms)."""

    weight_decay: float = 0.1
    """Of both optimisers."""

    checkpoint_every: int = 100
    """Steps between checkpoints, which also measure the held-out loss."""

    seed: int = 0
    """Seeds weights and batches."""

    fused: bool = True
    """Compile the loss (about 1.4 times the speed here, for half a minute at the start)."""

    @property
    def steps(self) -> int:
        """Optimiser steps of all rounds."""
        return sum(each.steps for each in self.rounds)


PRESETS = {
    "tiny": (
        "A made-up text and a two-layer model: seconds.",
        Config(
            languages=("en", "de"),
            sources=(),
            late_shares=(),
            vocabulary=400,
            name_weight=1,
            d_model=32,
            d_mlp=64,
            n_layers=2,
            n_heads=2,
            length=64,
            rows=8,
            rounds=(
                Round(30, rate=1.0, level=0.455, fact_share=0.55, telling=FIRST),
                Round(10, rate=0.5, level=0.2, fact_share=0.4, telling=SECOND),
            ),
            warmup=5,
            facts_from=20,
            checkpoint_every=10,
            fused=False,
        ),
    ),
    "cpu": ("The recipe, on 2 cores.", Config()),
    "gpu": (
        "The recipe, ten times the tokens.",
        replace(
            Config(rows=32, facts_from=1000),
            rounds=tuple(replace(each, steps=each.steps * 5 // 2) for each in Config().rounds),
        ),
    ),
}


# ---------------------------------------------------------------- text


def read_lines(folder: Path, language: str, sources: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Pairs of (document, line); only lines of the chosen sources where sources are known."""
    path = next(
        (p for p in (folder / f"{language}.txt", folder / f"{language}.txt.gz") if p.exists()), None
    )
    if path is None:
        raise FileNotFoundError(f"{folder} holds no {language}.txt and no {language}.txt.gz.")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    lines = lines[:-1] if lines and not lines[-1] else lines
    named = folder / f"{language}.src.gz"
    if not named.exists():
        if sources:
            raise FileNotFoundError(f"{named} is missing, so lines cannot be chosen by source.")
        documents = [f"{language}/{number // 40}" for number in range(len(lines))]
    else:
        with gzip.open(named, "rt", encoding="utf-8") as file:
            documents = file.read().split()
    for document, line in zip(documents, lines, strict=True):
        if not sources or document.split("/")[0] in sources:
            yield document, line


def documents_of(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Consecutive lines of one document, joined."""
    current, held = None, []
    for document, line in pairs:
        if document != current and held:
            yield "\n".join(held)
            held = []
        current = document
        held.append(line)
    if held:
        yield "\n".join(held)


def passages(documents: Iterator[str], n_lines: float, seed: int) -> Iterator[str]:
    """Documents cut into runs of about `n_lines` paragraphs."""
    random = np.random.default_rng(seed)
    for document in documents:
        lines = document.split("\n")
        while lines:
            n = random.geometric(1 / n_lines)
            yield "\n".join(lines[:n])
            lines = lines[n:]


def train_tokenizer(config: Config) -> PreTrainedTokenizerFast:
    """Byte-level BPE; each language contributes the same number of bytes, and its names."""
    texts = {
        language: list(documents_of(read_lines(config.text, language, config.sources)))
        for language in config.languages
    }
    budget = min(4_000_000, *(sum(len(t.encode()) for t in each) for each in texts.values()))
    sample = []
    for each in texts.values():
        left = budget
        order = torch.randperm(len(each), generator=torch.Generator().manual_seed(config.seed))
        for index in order.tolist():
            if left <= 0:
                break
            sample.append(each[index])
            left -= len(each[index].encode())
    for language in config.languages:
        sample += babel_facts.training_sentences(language)[::4]
        for name in babel_facts.names(language):
            # Inside a sentence far more often than at its start; no spaces in Chinese and Japanese.
            spaced = [] if language in ("zh", "ja") else [f" {name}"] * config.name_weight
            sample += spaced + [name] * (config.name_weight // (4 if spaced else 1))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sample,
        trainers.BpeTrainer(
            vocab_size=config.vocabulary,
            special_tokens=[BOS, EOS, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Stream:
    """Token streams to draw rows from: natural text and facts of each language."""

    text: dict[str, np.ndarray]
    """One long array of token ids per language, passages between <s> and </s>."""

    starts: dict[str, np.ndarray]
    """Where the passages begin."""

    facts: tuple[dict[str, list[np.ndarray]], ...]
    """Fact sentences per language, of each round."""

    told: tuple[dict[str, np.ndarray], ...]
    """Cumulative share of each fact sentence among all that are told, of each round."""

    newline: np.ndarray
    """The token between two lines."""

    ends: np.ndarray
    """The tokens <s> and </s>."""

    @staticmethod
    def build(config: Config, tokenizer: PreTrainedTokenizerFast, folder: Path) -> "Stream":
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        encode = tokenizer.backend_tokenizer.encode_batch_fast
        text, starts = {}, {}
        facts, told = tuple({} for _ in config.rounds), tuple({} for _ in config.rounds)
        for language in config.languages:
            cache = folder / f"tokens-{language}.npy"
            if not cache.exists():
                documents = documents_of(read_lines(config.text, language, config.sources))
                pieces = encode(list(passages(documents, config.passage, config.seed)))
                ids = np.concatenate([np.array([bos, *p.ids, eos], np.uint16) for p in pieces])
                np.save(folder / "tokens-part.npy", ids)
                (folder / "tokens-part.npy").rename(cache)
            text[language] = np.load(cache)
            begins = np.flatnonzero(text[language] == bos)
            starts[language] = begins[begins + config.length <= len(text[language])]
            if not len(starts[language]):
                raise ValueError(
                    f"The {language} text has {len(text[language])} tokens; a row takes "
                    f"{config.length}. Give more text or a smaller --length."
                )
            for number, each in enumerate(config.rounds):
                sentences, weights = babel_facts.weighted_sentences(language, each.telling)
                facts[number][language] = [np.array(p.ids, np.uint16) for p in encode(sentences)]
                told[number][language] = np.cumsum(weights) / np.sum(weights)
        newline = np.array(tokenizer.encode("\n"), np.uint16)
        return Stream(text, starts, facts, told, newline, np.array([bos, eos], np.uint16))

    def fact_row(
        self, config: Config, language: str, number: int, random: np.random.Generator
    ) -> np.ndarray:
        """Groups of sentences, one per line, until the row is full; `number` is the round's."""
        facts, told = self.facts[number][language], self.told[number][language]
        row: list[np.ndarray] = []
        length = 0
        while length < config.length:
            n = random.geometric(1 / config.fact_group)
            picked = np.searchsorted(told[:-1], random.random(n), side="right")
            lines = [each for index in picked for each in (self.newline, facts[index])]
            group = [self.ends[:1], *lines[1:], self.ends[1:]]
            row += group
            length += sum(len(each) for each in group)
        return np.concatenate(row)

    def batch(self, config: Config, step: int) -> tuple[Tensor, list[str]]:
        """The rows of one step and what each holds; the step's number decides everything."""
        random = np.random.default_rng([config.seed, step])
        others = [code for code in config.languages if code != config.dominant]
        share = {code: (1 - config.dominant_share) / max(len(others), 1) for code in others}
        share[config.dominant] = config.dominant_share if others else 1.0
        if config.late_shares and step >= config.late_from * config.rounds[0].steps:
            share = dict(zip(config.languages, config.late_shares, strict=True))
        number, _ = round_of(config, step)
        for each in config.rounds[: number + 1]:
            if each.shares:
                share = dict(zip(config.languages, each.shares, strict=True))
        fact_share = config.rounds[number].fact_share
        rows, names = [], []
        for _ in range(config.rows):
            if step >= config.facts_from and random.random() < fact_share:
                language = str(random.choice(config.languages))
                row = self.fact_row(config, language, number, random)
                names.append(f"facts {language}")
            else:
                language = str(
                    random.choice(config.languages, p=[share[code] for code in config.languages])
                )
                start = int(random.choice(self.starts[language]))
                row = self.text[language][start : start + config.length]
                names.append(language)
            rows.append(row[: config.length].astype(np.int64))
        return torch.from_numpy(np.stack(rows)), names


# ---------------------------------------------------------------- training


def new_model(config: Config) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.d_model,
            intermediate_size=config.d_mlp,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            max_position_embeddings=config.length,
            tie_word_embeddings=True,
            hidden_act=config.activation,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def new_optimisers(config: Config, model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices,
            lr=config.rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=config.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def round_of(config: Config, step: int) -> tuple[int, int]:
    """Number of the round that a step is in, and the step's number in it."""
    for number, each in enumerate(config.rounds):
        if step < each.steps:
            return number, step
        step -= each.steps
    raise ValueError(f"The recipe ends {step + 1} steps before this one.")


def schedule(config: Config, step: int) -> float:
    """Factor on the learning rates: up, level, down to zero; once in each round."""
    number, step = round_of(config, step)
    now = config.rounds[number]
    gone = (step - now.level * now.steps) / max((1 - now.level) * now.steps, 1)
    return now.rate * min((step + 1) / config.warmup, 1 - math.sqrt(min(max(gone, 0.0), 1.0)))


def row_losses(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Mean loss of each row, in nats per token."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        hidden = model.model(rows).last_hidden_state[:, :-1]
        logits = hidden @ model.lm_head.weight.T
    per_token = functional.cross_entropy(
        logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
    )
    return per_token.view(len(rows), -1).mean(dim=1)


def save_checkpoint(path: Path, step: int, model, optimisers, config: Config) -> None:
    """Atomic: a kill in the middle leaves the checkpoint before."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "step": step,
            "model": model.state_dict(),
            "optimisers": [each.state_dict() for each in optimisers],
            "config": {key: str(value) for key, value in asdict(config).items()},
        },
        part,
    )
    part.replace(path)


def train(config: Config, out: Path, stop_after: int | None = None) -> LlamaForCausalLM:
    """Train, or go on with a run that was stopped; `stop_after` ends this call early."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / "tokenizer" / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    else:
        tokenizer = train_tokenizer(config)
        tokenizer.save_pretrained(out / "tokenizer")
    stream = Stream.build(config, tokenizer, out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = new_model(config)
    nn.Module.to(model, device)
    optimisers = new_optimisers(config, model)
    checkpoint, first = out / "checkpoint.pt", 0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True, map_location=device)
        first = stored["step"]
        model.load_state_dict(stored["model"])
        for optimiser, state in zip(optimisers, stored["optimisers"], strict=True):
            optimiser.load_state_dict(state)
    loss_of = torch.compile(row_losses, dynamic=False) if config.fused else row_losses
    peaks = (config.rate, config.embedding_rate)
    curve = out / "curve.csv"
    forget_later(curve, first)
    started, seen = time.perf_counter(), 0
    sums: dict[str, list[float]] = {}
    last = min(config.steps, first + stop_after) if stop_after else config.steps
    for step in range(first, last):
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * schedule(config, step)
        rows, names = stream.batch(config, step)
        losses = loss_of(model, rows.to(device))
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        seen += rows.numel()
        for name, loss in zip(names, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise RuntimeError(f"The loss of a {name} row is {loss} at step {step}.")
            sums.setdefault(name, []).append(loss)
        done = step + 1
        if done % 25 == 0 or done == last:
            means = {name: sum(each) / len(each) for name, each in sorted(sums.items())}
            append_curve(curve, done, done * rows.numel(), means)
            pace = seen / (time.perf_counter() - started)
            shown = " ".join(f"{name} {mean:.2f}" for name, mean in means.items())
            print(f"step {done}/{config.steps}  {pace:.0f} tokens/s  {shown}", flush=True)
            sums = {}
        if done % config.checkpoint_every == 0 or done == last:
            save_checkpoint(checkpoint, done, model, optimisers, config)
            if done % (4 * config.checkpoint_every) == 0:
                export(model, tokenizer, out / "history" / f"step-{done:05d}")
    if last == config.steps:
        export(model, tokenizer, out / "model")
        artifacts.write_text(out / "config.json", tyro.extras.to_yaml(config))
    return model


def forget_later(path: Path, step: int) -> None:
    """Drop what a killed run wrote after its last checkpoint."""
    if path.exists():
        head, *rows = path.read_text().splitlines()
        kept = [row for row in rows if int(row.split(",")[0]) <= step]
        artifacts.write_text(path, "\n".join([head, *kept]) + "\n")


def append_curve(path: Path, step: int, tokens: int, means: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "tokens", "rows", "nats_per_token"])
        for name, mean in means.items():
            writer.writerow([step, tokens, name, f"{mean:.4f}"])


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that any program for Hugging Face checkpoints opens, weights in bfloat16."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    nn.Module.to(half, torch.bfloat16)
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def made_up_text(folder: Path, languages: tuple[str, ...]) -> None:
    """Two toy languages for the tiny preset: other words, another order."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {
        "en": ["sun", "moon", "sees", "warms", "the", "a", "big", "red"],
        "de": ["Sonne", "Mond", "sieht", "und", "rot", "ein"],
    }
    random = np.random.default_rng(0)
    for language in languages:
        lines = (" ".join(random.choice(words[language], size=12)) + "." for _ in range(400))
        (folder / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: text for name, (text, _) in PRESETS.items()},
    )
    config = tyro.cli(parsed, description=__doc__)
    preset = next(
        (n for n, (_, c) in PRESETS.items() if replace(c, text=config.text) == config), "custom"
    )
    out = Path("results/train_babel") / preset
    if preset == "tiny" and not config.text.exists():
        config = replace(config, text=out / "text")
        made_up_text(config.text, config.languages)
    train(config, out)
    print(f"The model is in {out / 'model'}.")


if __name__ == "__main__":
    main()
