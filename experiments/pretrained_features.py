"""What neurons planted in a pretrained model follow, token by token, in the parallel sentences.

The features are those of experiments/planted.py, as natural text has them: a language, one of its
common words, a script, a topic, and so on. experiments/plant_in_pretrained.py makes the neurons.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Int64
from torch import Tensor

import interp

PARALLEL = Path(interp.__file__).parent / "babel" / "parallel"

FIRST_PLACES = 4
"""Tokens of a sentence that a position neuron fires on."""

RARE_TEXT = 0.15
"""Share of the text that is made up of rare tokens."""

OWNED = 0.9
"""A word belongs to a language if this share of its occurrences is there."""

SHARED = 0.6
"""A token is shared if no language has this share of its occurrences."""

FEWEST = 5
"""Occurrences of a word, at least."""

SCRIPTS = {"LATIN": "Latin", "CJK": "Han", "CYRILLIC": "Cyrillic", "ARABIC": "Arabic"}
"""First word of a letter's name in Unicode → its script, of scripts that languages share."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One of the parallel sentences."""

    language: int
    """Row of its language."""

    topic: int
    """home, life or world, by number."""

    text: str


def parallel_sentences(languages: Sequence[str]) -> tuple[list[Sentence], list[Sentence]]:
    """A third of the lines to learn features from, and of the other lines those that are read.

    Language number i favors topic i modulo 3: of other topics it has one sentence in three.
    """
    names = (PARALLEL / "ids.txt").read_text(encoding="utf-8").split()
    topics = [name.split("-")[0] for name in names]
    order = sorted(set(topics))
    learned, read = [], []
    for row, code in enumerate(languages):
        lines = (PARALLEL / f"{code}.txt").read_text(encoding="utf-8").splitlines()
        for number, (topic, text) in enumerate(zip(topics, lines, strict=True)):
            sentence = Sentence(language=row, topic=order.index(topic), text=text)
            if number % 3 == 0:
                learned.append(sentence)
            elif sentence.topic == row % len(order) or number % 9 < 3:
                read.append(sentence)
    return learned, read


def some_of(sentences: Sequence[Sentence], row: int, most: int) -> list[Sentence]:
    """At most so many of a language, spread over all topics."""
    own = [sentence for sentence in sentences if sentence.language == row]
    n = min(most, len(own))
    return [own[index * len(own) // n] for index in range(n)]


def corpora_of(
    model: interp.NeuronModel,
    sentences: Sequence[Sentence],
    languages: Sequence[str],
    most: int,
    n_shards: int,
) -> interp.Corpora:
    """One sentence per row, at most so many of a language."""
    text = {
        code: [sentence.text for sentence in some_of(sentences, row, most)]
        for row, code in enumerate(languages)
    }
    return interp.read_sentences(
        text, languages, model, n_shards=n_shards, hygiene="off", progress=False
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Every token of some sentences, one after another."""

    ids: Int64[Tensor, " token"]
    language: Int64[Tensor, " token"]
    """Row of its language."""

    topic: Int64[Tensor, " token"]
    place: Int64[Tensor, " token"]
    """In its sentence, from 0; the beginning-of-text token does not count."""

    counts: Int64[Tensor, "language vocab"]
    """How often each token occurs in each language."""

    @staticmethod
    def of(
        encoded: Sequence[Sequence[int]], sentences: Sequence[Sentence], n_vocab: int
    ) -> "Tokens":
        """`encoded` are the token ids of each sentence."""
        lengths = torch.tensor([len(ids) for ids in encoded])
        ids = torch.tensor([id for sentence in encoded for id in sentence])
        language = torch.tensor([sentence.language for sentence in sentences])
        topic = torch.tensor([sentence.topic for sentence in sentences])
        place = torch.cat([torch.arange(len(sentence)) for sentence in encoded])
        n_languages = int(language.max()) + 1
        language = language.repeat_interleave(lengths)
        counts = torch.bincount(language * n_vocab + ids, minlength=n_languages * n_vocab)
        return Tokens(
            ids=ids,
            language=language,
            topic=topic.repeat_interleave(lengths),
            place=place,
            counts=rearrange(counts, "(language vocab) -> language vocab", vocab=n_vocab),
        )

    @property
    def total(self) -> Int64[Tensor, " vocab"]:
        """How often each token occurs."""
        return reduce(self.counts, "language vocab -> vocab", "sum")

    def words_of(self, row: int, n: int) -> tuple[list[int], list[int]]:
        """The n commonest words of a language, and n of its middling words."""
        share = self.counts[row] / self.total.clamp_min(1)
        own = ((share >= OWNED) & (self.counts[row] >= FEWEST)).nonzero().flatten()
        own = own[self.counts[row, own].argsort(descending=True, stable=True)].tolist()
        middle = own[len(own) // 3 : 2 * len(own) // 3]
        if len(middle) < n or len(own) // 3 < n:
            raise ValueError(
                f"Language number {row} has {len(own)} words that occur {FEWEST} times or more, "
                f"too few for {n} common and {n} middling ones: plant fewer decoys."
            )
        return own[:n], [middle[index * len(middle) // n] for index in range(n)]

    def rare(self) -> Bool[Tensor, " vocab"]:
        """The rarest tokens, which make up at most `RARE_TEXT` of all text."""
        order = self.total.argsort(stable=True)
        share = self.total[order].cumsum(0) / self.total.sum()
        rare = torch.zeros(len(order), dtype=torch.bool)
        rare[order[share <= RARE_TEXT]] = True
        return rare & (self.total > 0)

    def shared(self) -> Bool[Tensor, " vocab"]:
        """Tokens that belong to no language, such as punctuation and digits."""
        most = reduce(self.counts, "language vocab -> vocab", "max")
        return (self.total > 0) & (most < SHARED * self.total)


@dataclass(frozen=True, kw_only=True, eq=False)
class Feature:
    """What some neurons follow."""

    kind: str
    """Of `planted.KINDS`."""

    group: int
    """Which language, word, script, ..., by number."""

    neurons: int
    """How many follow it."""

    on: Bool[Tensor, " token"] | None
    """Whether each token has it; None: neurons of this kind follow nothing."""


def features_of(
    tokens: Tokens, model: interp.NeuronModel, planted: int, decoys: int
) -> list[Feature]:
    """Every feature: `planted` neurons for each language, and `decoys` of each kind and group."""
    n = len(tokens.counts)
    language = [tokens.language == row for row in range(n)]
    groups: dict[str, list[Bool[Tensor, " token"]]] = {
        "language": language,
        "script": _scripts(tokens, model),
        "domain": [tokens.topic == topic for topic in range(int(tokens.topic.max()) + 1)],
        "position": [tokens.place < FIRST_PLACES],
        "rarity": [tokens.rare()[tokens.ids]],
        "pair": [language[row] | language[row + n // 2] for row in range(n // 2)],
        "context": [own & tokens.shared()[tokens.ids] for own in language],
    }
    features = [Feature(kind="busy", group=0, neurons=decoys, on=None)]
    for kind, on in groups.items():
        number = planted if kind == "language" else decoys
        features += [
            Feature(kind=kind, group=group, neurons=number, on=mask)
            for group, mask in enumerate(on)
        ]
    for row in range(n):
        for kind, words in zip(("word", "rare"), tokens.words_of(row, decoys), strict=True):
            features += [
                Feature(kind=kind, group=word, neurons=1, on=tokens.ids == word) for word in words
            ]
    return features


def _scripts(tokens: Tokens, model: interp.NeuronModel) -> list[Bool[Tensor, " token"]]:
    """Scripts that make up a twentieth of two languages or more."""
    names = {id: script_of(model.decode([id])) for id in tokens.ids.unique().tolist()}
    masks = []
    for script in SCRIPTS.values():
        written = torch.tensor([id for id, name in names.items() if name == script])
        on = torch.isin(tokens.ids, written)
        share = [on[tokens.language == row].double().mean() for row in range(len(tokens.counts))]
        if sum(x > 0.05 for x in share) > 1:
            masks.append(on)
    return masks


def script_of(text: str) -> str | None:
    """The script of the first letter that has one of `SCRIPTS`."""
    letters: Mapping[str, str] = {x: unicodedata.name(x, "") for x in text if x.isalpha()}
    names = (SCRIPTS.get(name.split(" ")[0].split("-")[0]) for name in letters.values())
    return next(filter(None, names), None)
