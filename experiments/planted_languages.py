"""The synthetic languages of planted models: made-up words with a wide range of frequencies.

experiments/planted.py makes the models.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

SPECIAL = ("<pad>", "<bos>", "<unk>")
BOS = SPECIAL.index("<bos>")


@dataclass(frozen=True)
class Design:
    """All settings of planted models but the effect size and the seed."""

    languages: tuple[str, ...] = ("en", "de", "fr", "es", "zh", "ja")
    """Labels only, since the library asks for ISO codes: the languages are synthetic. Successive
    pairs share a script. The last language has short sentences."""

    n_layers: int = 4
    d_model: int = 128
    d_mlp: int = 512

    n_noise: int = 64
    """Dimensions of the random part of word vectors."""

    planted: int = 12
    """Language neurons per language."""

    decoys: int = 12
    """Decoys of each kind: busy and position, in all; rare, per language; script and domain, for
    each of these."""

    decoy_effect: float = 4.0
    """Effect size of script and domain neurons."""

    context: float = 0.5
    """Weight of the mean of all words so far, relative to the word itself."""

    write: float = 0.1
    """Norm of what a neuron adds to the residual stream at an output of one."""

    general_words: int = 150
    """Words of a language that occur in every domain."""

    domain_words: int = 20
    """Words of a language that occur in one domain; there are as many domains as languages."""

    script_words: int = 40
    """Words shared by the languages of a script."""

    common_words: int = 30
    """Words shared by all languages, like digits and punctuation."""

    own_domain: float = 0.5
    """Share of a language's sentences in its favorite domain; the others have equal shares."""

    sentences: int = 500
    """Per language, for the statistics."""

    def __post_init__(self) -> None:
        if len(self.languages) % 2 or len(self.languages) < 4:
            raise ValueError(
                f"{len(self.languages)} languages do not make two pairs or more: give 4, 6, 8, ..."
            )
        if (needed := self.features["filler"].stop) > self.d_model:
            raise ValueError(
                f"{needed} dimensions are needed and d_model is {self.d_model}: raise it, or lower "
                f"n_noise ({self.n_noise})."
            )

    @property
    def scripts(self) -> tuple[tuple[str, str], ...]:
        """The pairs of languages that share a script."""
        return tuple(zip(self.languages[::2], self.languages[1::2], strict=True))

    @property
    def features(self) -> dict[str, slice]:
        """Slices of the residual stream, before rotation.

        Gates read the features before `write`; neurons write to `write`, which only the unembedding
        reads, so that layers do not interact. `spoken` is the share of words so far that belong to
        each language, where a model has neurons that read it. `filler` gives all words the same
        norm.
        """
        n = len(self.languages)
        sizes = {"constant": 1, "bos": 1, "position": 1, "language": n, "script": n // 2}
        sizes |= {"domain": n, "noise": self.n_noise, "write": 2 * n}
        sizes |= {"rarity": 1, "spoken": n, "filler": 1}
        slices, start = {}, 0
        for name, size in sizes.items():
            slices[name] = slice(start, start + size)
            start += size
        return slices


# ---------------------------------------------------------------- the languages


@dataclass(frozen=True)
class Words:
    """The vocabulary of all languages; a word's index is its token id."""

    text: tuple[str, ...]
    """Special tokens first."""

    speaks: Bool[Tensor, "word language"]
    """Whether the word belongs to this language alone."""

    script: Bool[Tensor, "word script"]
    """Whether the word is written in this script, as are all words of its languages."""

    domain: Bool[Tensor, "word domain"]
    """Whether the word occurs in this domain alone."""

    rare: Bool[Tensor, " word"]
    """Whether it is in the last third of the words of its group, by frequency."""

    frequency: Float64[Tensor, "language domain word"]
    """Share of each word in a language's sentences on a domain."""

    def of_middling_frequency(self, row: int) -> Int64[Tensor, " word"]:
        """The middle third, by frequency, of the words that a language uses in every domain."""
        general = self.by_frequency(row)
        return general[len(general) // 3 : 2 * len(general) // 3]

    def by_frequency(self, row: int) -> Int64[Tensor, " word"]:
        """The words that a language uses in every domain, the commonest first."""
        return (self.speaks[:, row] & ~self.domain.any(dim=1)).nonzero().flatten()


def make_words(design: Design) -> Words:
    """The words and their frequencies: the Zipf-Mandelbrot law within each group.

    5 % of a sentence's words are common to all languages, 10 % belong to the script, and half of
    the rest to its domain.
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
    rare = torch.zeros(len(text), dtype=torch.bool)
    for ids in groups.values():
        rare[ids[2 * len(ids) // 3 :]] = True
    script, on_domain = torch.zeros(len(text), n // 2, dtype=torch.bool), torch.zeros_like(speaks)
    frequency = torch.zeros(n, n, len(text), dtype=torch.float64)

    def use(where: tuple[int | slice, int | slice], group: tuple[str, ...], share: float) -> None:
        weight = 1 / (torch.arange(len(groups[group])).double() + 5)
        frequency[where][..., groups[group]] += share * weight / weight.sum()

    anywhere = slice(None)
    use((anywhere, anywhere), ("common",), 0.05)
    for row, code in enumerate(design.languages):
        general, of_script = ("general", code), ("script", *design.scripts[row // 2])
        domains = [("domain", code, str(domain)) for domain in range(n)]
        use((row, anywhere), of_script, 0.1)
        use((row, anywhere), general, 0.425)
        script[groups[of_script], row // 2] = True
        for group in (general, *domains):
            speaks[groups[group], row] = script[groups[group], row // 2] = True
        for domain, group in enumerate(domains):
            use((row, domain), group, 0.425)
            on_domain[groups[group], domain] = True
    return Words(tuple(text), speaks, script, on_domain, rare, frequency)


def domain_shares(design: Design) -> Float64[Tensor, "language domain"]:
    """Share of a language's sentences on each domain: language i favors domain i."""
    n = len(design.languages)
    rest = (1 - design.own_domain) / (n - 1)
    shares = torch.full((n, n), rest, dtype=torch.float64)
    return shares.fill_diagonal_(design.own_domain)


def write_text(
    design: Design, words: Words, n_sentences: int, generator: torch.Generator
) -> dict[str, list[str]]:
    """Sentences of 8 to 24 words (5 to 14 in the last language), each on one domain."""
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
