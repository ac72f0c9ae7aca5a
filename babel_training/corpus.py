"""What Babel reads: natural text and sentences of the fact base, as rows of tokens.

The number of a step determines its rows, so a resumed run reads what an unbroken one would.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from babel_training import knowledge
from babel_training.recipe import Config, round_of

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def read_lines(folder: Path, language: str, sources: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Pairs of (document, line) from the chosen sources, or from all if none are chosen."""
    path = next(
        (p for p in (folder / f"{language}.txt", folder / f"{language}.txt.gz") if p.exists()), None
    )
    if path is None:
        raise FileNotFoundError(f"{folder} has neither {language}.txt nor {language}.txt.gz.")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    lines = lines[:-1] if lines and not lines[-1] else lines
    source_path = folder / f"{language}.src.gz"
    if not source_path.exists():
        if sources:
            raise FileNotFoundError(
                f"{source_path} is missing: it is needed to choose lines by source."
            )
        documents = [f"{language}/{number // 40}" for number in range(len(lines))]
    else:
        with gzip.open(source_path, "rt", encoding="utf-8") as file:
            documents = file.read().split()
    for document, line in zip(documents, lines, strict=True):
        if not sources or document.split("/")[0] in sources:
            yield document, line


def documents_of(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Consecutive lines of one document, joined."""
    for _, group in groupby(pairs, key=lambda pair: pair[0]):
        yield "\n".join(line for _, line in group)


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
    """Byte-level BPE, learned from equally many bytes per language and the fact base's names."""
    texts = {
        language: list(documents_of(read_lines(config.text, language, config.sources)))
        for language in config.languages
    }
    budget = min(
        4_000_000, *(sum(len(t.encode()) for t in documents) for documents in texts.values())
    )
    sample = []
    for documents in texts.values():
        left = budget
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(config.seed))
        for index in order.tolist():
            if left <= 0:
                break
            sample.append(documents[index])
            left -= len(documents[index].encode())
    for language in config.languages:
        sample += knowledge.training_sentences(language)[::4]
        for name in knowledge.names(language):
            # Mostly inside sentences, so after a space; Chinese and Japanese have none.
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
    """Tokens to draw rows from: natural text and facts of each language."""

    text: dict[str, np.ndarray]
    """One long array of token ids per language; each passage is between <s> and </s>."""

    starts: dict[str, np.ndarray]
    """Start positions of the passages."""

    facts: tuple[dict[str, list[np.ndarray]], ...]
    """Fact sentences per language, for each round."""

    cumulative_share: tuple[dict[str, np.ndarray], ...]
    """Cumulative sampling probability of the fact sentences, for each round."""

    newline: np.ndarray
    """The token between two lines."""

    ends: np.ndarray
    """The tokens <s> and </s>."""

    @staticmethod
    def build(config: Config, tokenizer: PreTrainedTokenizerFast, folder: Path) -> "Stream":
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        encode = tokenizer.backend_tokenizer.encode_batch_fast
        text, starts = {}, {}
        facts, cumulative = tuple({} for _ in config.rounds), tuple({} for _ in config.rounds)
        for language in config.languages:
            cache = folder / f"tokens-{language}.npy"
            if not cache.exists():
                documents = documents_of(read_lines(config.text, language, config.sources))
                pieces = encode(list(passages(documents, config.passage, config.seed)))
                ids = np.concatenate([np.array([bos, *p.ids, eos], np.uint16) for p in pieces])
                np.save(folder / "tokens-part.npy", ids)
                (folder / "tokens-part.npy").rename(cache)
            text[language] = np.load(cache)
            first = np.flatnonzero(text[language] == bos)
            starts[language] = first[first + config.length <= len(text[language])]
            if not len(starts[language]):
                raise ValueError(
                    f"The {language} text has {len(text[language])} tokens; a row needs "
                    f"{config.length}. Give more text or a smaller --length."
                )
            for number, stage in enumerate(config.rounds):
                sentences, weights = knowledge.weighted_sentences(language, stage.telling)
                facts[number][language] = [np.array(p.ids, np.uint16) for p in encode(sentences)]
                cumulative[number][language] = np.cumsum(weights) / np.sum(weights)
        newline = np.array(tokenizer.encode("\n"), np.uint16)
        return Stream(text, starts, facts, cumulative, newline, np.array([bos, eos], np.uint16))

    def fact_row(
        self, config: Config, language: str, number: int, random: np.random.Generator
    ) -> np.ndarray:
        """A row filled with groups of sentences, one per line; `number` is that of the round."""
        facts, cumulative = self.facts[number][language], self.cumulative_share[number][language]
        row: list[np.ndarray] = []
        length = 0
        while length < config.length:
            n = random.geometric(1 / config.fact_group)
            drawn = np.searchsorted(cumulative[:-1], random.random(n), side="right")
            lines = [ids for index in drawn for ids in (self.newline, facts[index])]
            group = [self.ends[:1], *lines[1:], self.ends[1:]]
            row += group
            length += sum(len(ids) for ids in group)
        return np.concatenate(row)

    def batch(self, config: Config, step: int) -> tuple[Tensor, list[str]]:
        """The rows of one step and what each holds, determined by the step's number alone."""
        random = np.random.default_rng([config.seed, step])
        others = [code for code in config.languages if code != config.dominant]
        share = {code: (1 - config.dominant_share) / max(len(others), 1) for code in others}
        share[config.dominant] = config.dominant_share if others else 1.0
        if config.late_shares and step >= config.late_from * config.rounds[0].steps:
            share = dict(zip(config.languages, config.late_shares, strict=True))
        number, _ = round_of(config, step)
        for stage in config.rounds[: number + 1]:
            if stage.shares:
                share = dict(zip(config.languages, stage.shares, strict=True))
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


def synthetic_text(folder: Path, languages: tuple[str, ...]) -> None:
    """Text files in two toy languages with different words, for the tiny preset."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {
        "en": ["sun", "moon", "sees", "warms", "the", "a", "big", "red"],
        "de": ["Sonne", "Mond", "sieht", "und", "rot", "ein"],
    }
    random = np.random.default_rng(0)
    for language in languages:
        lines = (" ".join(random.choice(words[language], size=12)) + "." for _ in range(400))
        (folder / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
