"""The languages that planted models read: made-up words of very different frequency.

How planted models are made of them says experiments/planted.py.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

SPECIAL = ("<pad>", "<bos>", "<unk>")
BOS = SPECIAL.index("<bos>")


@dataclass(frozen=True)
class Design:
    """Everything that makes planted models what they are, but the effect size and the seed."""

    languages: tuple[str, ...] = ("en", "de", "fr", "es", "zh", "ja")
    """Labels only, since the library asks for ISO codes: the languages are synthetic. The first
    two share a script, and so do the next two, and so on. The last has short sentences."""

    n_layers: int = 4
    d_model: int = 128
    d_mlp: int = 512

    n_noise: int = 64
    """Dimensions in which words lie at random."""

    planted: int = 12
    """Language neurons per language."""

    decoys: int = 12
    """Neurons that are busy, and at the first words; per language, that are rare; per script; per
    domain."""

    decoy_effect: float = 4.0
    """Of script and domain neurons, in the unit of the effect size."""

    context: float = 0.5
    """Weight, beside the word itself, of the mean of all words up to it."""

    write: float = 0.1
    """Length of what a neuron adds to the residual stream, for an output of one."""

    general_words: int = 150
    """Words of a language that occur in every domain."""

    domain_words: int = 20
    """Words of a language that occur in one domain; there are as many domains as languages."""

    script_words: int = 40
    """Words that the languages of a script have in common."""

    common_words: int = 30
    """Words of all languages, as digits and punctuation are."""

    own_domain: float = 0.5
    """Share of a language's sentences in its favourite domain; the others have equal shares."""

    sentences: int = 500
    """Per language, for the statistics."""

    def __post_init__(self) -> None:
        if len(self.languages) % 2 or len(self.languages) < 4:
            raise ValueError(
                f"{len(self.languages)} languages are no two pairs or more: give 4, 6, 8, ..."
            )
        if (needed := self._n_features) > self.d_model:
            raise ValueError(
                f"{needed} dimensions are needed and d_model is {self.d_model}: raise it, or lower "
                f"n_noise ({self.n_noise})."
            )

    @property
    def scripts(self) -> tuple[tuple[str, str], ...]:
        """The pairs of languages that share one."""
        return tuple(zip(self.languages[::2], self.languages[1::2], strict=True))

    @property
    def features(self) -> dict[str, slice]:
        """What the residual stream holds, before it is rotated: where in it each feature is.

        Gates read what is before `write`; neurons write there, and only the unembedding reads it,
        so that layers do not disturb each other. `filler` gives all words one length.
        """
        n = len(self.languages)
        sizes = {"constant": 1, "bos": 1, "position": 1, "language": n, "script": n // 2}
        sizes |= {"domain": n, "noise": self.n_noise, "write": 2 * n, "filler": 1}
        places, start = {}, 0
        for name, size in sizes.items():
            places[name] = slice(start, start + size)
            start += size
        return places

    @property
    def _n_features(self) -> int:
        return self.features["filler"].stop


# ---------------------------------------------------------------- the languages


@dataclass(frozen=True)
class Words:
    """The vocabulary of all languages; a word's place is its token id."""

    text: tuple[str, ...]
    """Special tokens first."""

    speaks: Bool[Tensor, "word language"]
    """Whether the word is of this language and no other."""

    script: Bool[Tensor, "word script"]
    """Whether it is written in this script, which holds for the words of its languages."""

    domain: Bool[Tensor, "word domain"]
    """Whether it occurs in this domain only."""

    frequency: Float64[Tensor, "language domain word"]
    """Share of the words in sentences of a language on a domain."""

    def of_middling_frequency(self, row: int) -> Int64[Tensor, " word"]:
        """Of a language's words in every domain, the middle third."""
        general = (self.speaks[:, row] & ~self.domain.any(dim=1)).nonzero().flatten()
        return general[len(general) // 3 : 2 * len(general) // 3]


def make_words(design: Design) -> Words:
    """The words, and how often each is used: by Zipf's law (Mandelbrot's form) within each group.

    A twentieth of a sentence are common words, a tenth words of the script, and of the rest half
    are on its domain.
    """
    n = len(design.languages)
    text: list[str] = list(SPECIAL)
    groups: dict[tuple[str, ...], list[int]] = {}
    sizes: dict[tuple[str, ...], int] = {("common",): design.common_words}
    sizes |= {("script", *pair): design.script_words for pair in design.scripts}
    sizes |= {("general", code): design.general_words for code in design.languages}
    sizes |= {
        ("domain", code, str(domain)): design.domain_words
        for code in design.languages
        for domain in range(n)
    }
    for group, size in sizes.items():
        groups[group] = list(range(len(text), len(text) + size))
        text += ["-".join((*group, str(rank))) for rank in range(size)]
    speaks = torch.zeros(len(text), n, dtype=torch.bool)
    script, on_domain = torch.zeros(len(text), n // 2, dtype=torch.bool), torch.zeros_like(speaks)
    frequency = torch.zeros(n, n, len(text), dtype=torch.float64)

    def use(where: tuple[int | slice, int | slice], group: tuple[str, ...], share: float) -> None:
        weight = 1 / (torch.arange(len(groups[group])).double() + 5)
        frequency[where][..., groups[group]] += share * weight / weight.sum()

    every = slice(None)
    use((every, every), ("common",), 0.05)
    for row, code in enumerate(design.languages):
        pair = design.scripts[row // 2]
        use((row, every), ("script", *pair), 0.1)
        use((row, every), ("general", code), 0.425)
        script[groups["script", *pair], row // 2] = True
        for group in (("general", code), *(("domain", code, str(each)) for each in range(n))):
            speaks[groups[group], row] = script[groups[group], row // 2] = True
        for each in range(n):
            use((row, each), ("domain", code, str(each)), 0.425)
            on_domain[groups["domain", code, str(each)], each] = True
    return Words(tuple(text), speaks, script, on_domain, frequency)


def domain_shares(design: Design) -> Float64[Tensor, "language domain"]:
    """Share of a language's sentences on each domain: the i-th language's favourite is the i-th."""
    n = len(design.languages)
    rest = (1 - design.own_domain) / (n - 1)
    shares = torch.full((n, n), rest, dtype=torch.float64)
    return shares.fill_diagonal_(design.own_domain)


def write_text(
    design: Design, words: Words, n_sentences: int, generator: torch.Generator
) -> dict[str, list[str]]:
    """Sentences of 8 to 24 words, in the last language 5 to 14; each is on one domain."""
    shares, text = domain_shares(design), {}
    for row, code in enumerate(design.languages):
        low, high = (5, 14) if code == design.languages[-1] else (8, 24)
        lengths = torch.randint(low, high + 1, (n_sentences,), generator=generator).tolist()
        domains = shares[row].multinomial(n_sentences, True, generator=generator).tolist()
        drawn = [
            words.frequency[row, domain].multinomial(length, True, generator=generator).tolist()
            for domain, length in zip(domains, lengths, strict=True)
        ]
        text[code] = [" ".join(words.text[id] for id in sentence) for sentence in drawn]
    return text
