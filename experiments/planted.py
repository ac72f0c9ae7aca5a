"""Small models with built-in language neurons and decoys, and the text they read.

Nobody knows the language neurons of a trained model. Here the weights are written by hand, so the
answer is known. A neuron's gate reads each word through a random direction; a language neuron's
gate also reads the word's language. The *effect size* is how far apart that puts the words of its
own language and those of others, in standard deviations of the rest. The neuron fires on words of
its language with probability Φ(effect / 2 - threshold), on those of others with Φ(-effect / 2 -
threshold), and on shared words with Φ(-threshold). At effect zero it is a background neuron, with a
threshold from the same distribution.

A language has some hundred words with a wide range of frequencies, so by chance of vocabulary every
neuron fires more in some languages than in others. An effect has to stand out from that, and more
text does not help.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float64, Int64
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

import interp
from experiments.planted_languages import (
    BOS,
    SPECIAL,
    Design,
    Words,
    domain_shares,
    make_words,
    write_text,
)

DECOYS = ("busy", "rare", "script", "domain", "position")
"""Neurons that a selector may mistake for language neurons: merely busy, merely rare, or driven by
a script, a domain, or a word's position in the text."""

SUBTLE = ("word", "rarity", "pair", "context")
"""More of them: driven by one of the commonest words of a language, by rare words of whatever
language, by two languages alike, and by a language in context alone. The last fires on words that
languages share, such as digits, in text of its language."""

KINDS = ("background", "language", *DECOYS, *SUBTLE)
"""Kinds of neurons: background, planted, or a decoy."""

# ---------------------------------------------------------------- the model


@dataclass(frozen=True)
class Truth:
    """The built-in neurons."""

    selection: interp.NeuronSelection
    """The planted neurons of each language."""

    kind: Int64[Tensor, "layer neuron"]
    """Index into `KINDS`."""

    threshold: Float64[Tensor, "layer neuron"]
    """What a gate's input must exceed to fire, in its standard deviations over words."""

    effect: float
    """Distance, in the same unit, that a planted neuron's gate puts between words of its language
    and words of others."""

    def is_kind(self, name: str) -> Bool[Tensor, "layer neuron"]:
        return self.kind == KINDS.index(name)

    def firing_probability(self) -> tuple[float, float]:
        """Of planted neurons on average, on words of their own language and on others."""
        threshold = self.threshold[self.is_kind("language")]
        normal = torch.distributions.Normal(0.0, 1.0)
        half = self.effect / 2
        own, other = (normal.cdf(shift - threshold).mean() for shift in (half, -half))
        return own.item(), other.item()


@dataclass(frozen=True)
class Planted:
    """A model with built-in neurons, and all that is known about it."""

    model: interp.NeuronModel
    truth: Truth
    words: Words

    vectors: Float64[Tensor, "word feature"]
    """The residual stream of each word, before rotation."""

    gates: Float64[Tensor, "layer neuron feature"]
    """The direction that each gate reads, before rotation."""


def plant(
    design: Design,
    effect: float,
    generator: torch.Generator,
    folder: Path,
    decoys: Collection[str] = DECOYS,
) -> Planted:
    """Write a Llama checkpoint into `folder` and open it.

    Models with the same seed differ only in the effect and in their `decoys`: background neurons
    replace the kinds that are left out.

    Only the first layer's attention is active. It takes the mean of all words so far and adds their
    random parts (so that firing depends on context), the share of the beginning-of-text token
    (which gives a word's position), and, where neurons read it, the share of each language's words.
    A planted neuron writes the direction that makes all words of its language likelier, any other
    neuron a random direction of the same norm. So switching a planted neuron off costs its
    language, as far as it fires there.
    """
    words = make_words(design)
    vectors = _word_vectors(design, words, generator)
    truth, gates = _neurons(design, words, vectors, effect, generator, decoys)
    features, n_features = design.features, design.d_model
    shape = (design.n_layers, design.d_mlp, n_features)

    linear = torch.zeros(shape, dtype=torch.float64)
    sign = torch.randint(2, shape[:2], generator=generator).double() * 2 - 1
    noise = torch.randn(*shape[:2], design.n_noise, generator=generator, dtype=torch.float64)
    linear[..., features["constant"]] = rearrange(sign, "layer neuron -> layer neuron 1")
    linear[..., features["noise"]] = 0.5 * noise / math.sqrt(design.n_noise)

    # Planted neurons write their language's direction times their sign, so that the output of half
    # of them is negative where they fire, as with all other neurons.
    n = len(design.languages)
    written = torch.zeros(shape, dtype=torch.float64)
    direction = torch.randn(*shape[:2], 2 * n, generator=generator, dtype=torch.float64)
    _, layers, neurons = truth.selection.mask.nonzero(as_tuple=True)
    owner = torch.nn.functional.one_hot(truth.selection.mask.nonzero()[:, 0], 2 * n).double()
    direction[layers, neurons] = owner * rearrange(sign[layers, neurons], "planted -> planted 1")
    direction /= direction.norm(dim=-1, keepdim=True)
    written[..., features["write"]] = design.write * direction

    unembed = _unembedding(design, words, generator)
    # Rotated, so that no feature is a coordinate of the residual stream.
    drawn = torch.randn(n_features, n_features, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(drawn)[0]
    state = {"model.embed_tokens.weight": vectors @ rotation, "lm_head.weight": unembed @ rotation}
    state["model.norm.weight"] = torch.ones(n_features)
    for layer in range(design.n_layers):
        zero, first = torch.zeros_like(rotation), layer == 0
        parts = {"self_attn.q_proj": zero, "self_attn.k_proj": zero}  # all words count alike
        parts |= {"self_attn.v_proj": _mixed(design, decoys) @ rotation if first else zero}
        parts |= {"self_attn.o_proj": rotation.T.contiguous() if first else zero}
        parts |= {"mlp.gate_proj": gates[layer] @ rotation, "mlp.up_proj": linear[layer] @ rotation}
        parts |= {"mlp.down_proj": (written[layer] @ rotation).T.contiguous()}
        parts |= {"input_layernorm": torch.ones(n_features)}
        parts |= {"post_attention_layernorm": torch.ones(n_features)}
        state |= {f"model.layers.{layer}.{name}.weight": part for name, part in parts.items()}
    _save(design, words, state, folder)
    return Planted(interp.load(folder), truth, words, vectors, gates)


def _mixed(design: Design, decoys: Collection[str]) -> Float64[Tensor, "feature feature"]:
    """What attention adds to each feature, of the mean of all words so far."""
    n_features, features = design.d_model, design.features
    mix = torch.zeros(n_features, n_features, dtype=torch.float64)
    mix[features["position"], features["bos"]] = 1
    mix[features["noise"], features["noise"]] = design.context * torch.eye(design.n_noise)
    if "context" in decoys:
        mix[features["spoken"], features["language"]] = torch.eye(len(design.languages)).double()
    return mix


def _unembedding(
    design: Design, words: Words, generator: torch.Generator
) -> Float64[Tensor, "word feature"]:
    """Logits of each word: its frequency, and what neurons write."""
    n, features = len(design.languages), design.features
    unembed = torch.zeros(len(words.text), design.d_model, dtype=torch.float64)
    share = domain_shares(design) / n
    frequency = einsum(words.frequency, share, "language domain word, language domain -> word")
    unembed[:, features["constant"]] = rearrange(frequency.clamp_min(1e-9).log(), "word -> word 1")
    write = features["write"]
    unembed[:, write.start : write.start + n] = words.speaks.double()
    random = torch.randn(len(words.text), n, generator=generator, dtype=torch.float64)
    unembed[:, write.start + n : write.stop] = 0.3 * random
    return unembed


def _word_vectors(
    design: Design, words: Words, generator: torch.Generator
) -> Float64[Tensor, "word feature"]:
    """A constant, the word's properties, a random direction of norm √n_noise; all of equal norm."""
    features = design.features
    vectors = torch.zeros(len(words.text), design.d_model, dtype=torch.float64)
    vectors[:, features["constant"]] = 1
    vectors[BOS, features["bos"]] = 1
    vectors[:, features["language"]] = words.speaks.double()
    vectors[:, features["script"]] = words.script.double()
    vectors[:, features["domain"]] = words.domain.double()
    vectors[:, features["rarity"]] = rearrange(words.rare.double(), "word -> word 1")
    noise = torch.randn(len(words.text), design.n_noise, generator=generator, dtype=torch.float64)
    noise *= math.sqrt(design.n_noise) / noise.norm(dim=1, keepdim=True)
    noise[: len(SPECIAL)] = 0
    vectors[:, features["noise"]] = noise
    length = reduce(vectors**2, "word feature -> word", "sum")
    assert length.max() < design.d_model + 1e-9, "words would have to be longer than d_model"
    vectors[:, features["filler"]] = rearrange(design.d_model - length, "word -> word 1").sqrt()
    return vectors


def _neurons(
    design: Design,
    words: Words,
    vectors: Float64[Tensor, "word feature"],
    effect: float,
    generator: torch.Generator,
    decoys: Collection[str],
) -> tuple[Truth, Float64[Tensor, "layer neuron feature"]]:
    """The neurons of each kind, and the directions that gates read."""
    _check(design, decoys)
    features, n = design.features, len(design.languages)
    n_neurons = design.n_layers * design.d_mlp
    noise = torch.randn(n_neurons, design.n_noise, generator=generator, dtype=torch.float64)
    noise /= noise.norm(dim=1, keepdim=True)
    threshold = 1.2 + 0.4 * torch.randn(n_neurons, generator=generator, dtype=torch.float64)
    gates = torch.zeros(n_neurons, design.d_model, dtype=torch.float64)
    kind = torch.zeros(n_neurons, dtype=torch.int64)
    mask = torch.zeros(n, n_neurons, dtype=torch.bool)
    order = iter(torch.randperm(n_neurons, generator=generator).tolist())

    def next_of(name: str, number: int) -> list[int]:
        """Indices of new neurons; they are used up even for decoys that are left out."""
        indices = [next(order) for _ in range(number)]
        if name != "language" and name not in decoys:
            return []
        kind[indices] = KINDS.index(name)
        return indices

    def shifted(name: str, feature: str, group: int, number: int, by: float) -> list[int]:
        indices = next_of(name, number)
        gates[indices, features[feature]] = -by / 2
        gates[indices, features[feature].start + group] = by / 2
        return indices

    for row in range(n):
        mask[row, shifted("language", "language", row, design.planted, effect)] = True
        shifted("domain", "domain", row, design.decoys, design.decoy_effect)
        middle, rare = words.of_middling_frequency(row), next_of("rare", design.decoys)
        # Each rare neuron fires on a single word.
        chosen = middle[torch.randperm(len(middle), generator=generator)[: design.decoys]]
        noise[rare] = vectors[chosen[: len(rare)], features["noise"]] / math.sqrt(design.n_noise)
        threshold[rare] = 0.8 * math.sqrt(design.n_noise)
    for row in range(n // 2):
        shifted("script", "script", row, design.decoys, design.decoy_effect)
    threshold[next_of("busy", design.decoys)] = -2
    first = next_of("position", design.decoys)
    # The beginning of text is a half, a third, a quarter, ... of the words so far.
    gates[first, features["position"]], threshold[first] = 8, 8 * 0.3
    noise[first] *= 0.3
    _subtle(design, words, vectors, gates, noise, threshold, next_of, shifted)
    gates[:, features["noise"]] = noise
    gates[:, features["constant"]] = rearrange(-threshold, "neuron -> neuron 1")

    axes = {"layer": design.n_layers}
    mask, kind, threshold = (
        rearrange(x, "... (layer neuron) -> ... layer neuron", **axes)
        for x in (mask, kind, threshold)
    )
    truth = Truth(interp.NeuronSelection(mask, design.languages), kind, threshold, effect)
    return truth, rearrange(gates, "(layer neuron) feature -> layer neuron feature", **axes)


def _subtle(
    design: Design,
    words: Words,
    vectors: Float64[Tensor, "word feature"],
    gates: Float64[Tensor, "neuron feature"],
    noise: Float64[Tensor, "neuron noise"],
    threshold: Float64[Tensor, " neuron"],
    next_of: Callable[[str, int], list[int]],
    shifted: Callable[[str, str, int, int, float], list[int]],
) -> None:
    """Set what the subtle decoys read. They come last, so that the others are as without them."""
    features, n, by = design.features, len(design.languages), design.decoy_effect
    for row in range(n):
        word = next_of("word", design.decoys)
        noise[word] = vectors[words.by_frequency(row)[: len(word)], features["noise"]]
        noise[word] /= math.sqrt(design.n_noise)
        threshold[word] = 0.8 * math.sqrt(design.n_noise)
    rarity = next_of("rarity", design.decoys)
    gates[rarity, features["rarity"]] = by
    threshold[rarity] += by / 2
    for row in range(n // 2):  # languages of different scripts
        pair = shifted("pair", "language", row, design.decoys, by)
        gates[pair, features["language"].start + row + n // 2] = by / 2
    for row in range(n):
        context = shifted("context", "spoken", row, design.decoys, by)
        gates[context, features["language"]] = -by  # silent on words that belong to a language


def _check(design: Design, decoys: Collection[str]) -> None:
    if unknown := sorted(set(decoys) - set(KINDS[2:])):
        raise ValueError(
            f"{', '.join(unknown)} are no decoys; choose among {', '.join(KINDS[2:])}."
        )
    n, n_neurons = len(design.languages), design.n_layers * design.d_mlp
    needed = n * design.planted + (2 * n + n // 2 + 2) * design.decoys
    if set(decoys) & set(SUBTLE):
        needed += (2 * n + n // 2 + 1) * design.decoys
    if 2 * needed > n_neurons:
        raise ValueError(
            f"{needed} planted neurons and decoys are more than half of {n_neurons:,} neurons: "
            "leave half of them as background."
        )


def _save(design: Design, words: Words, state: Mapping[str, Tensor], folder: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=design.d_model,
        intermediate_size=design.d_mlp,
        num_hidden_layers=design.n_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        vocab_size=len(words.text),
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=BOS,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict({name: weight.float() for name, weight in state.items()})
    model.save_pretrained(folder)
    vocabulary = {word: id for id, word in enumerate(words.text)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "unk_token"), SPECIAL, strict=True))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)


def read_text(
    design: Design, planted: Planted, n_sentences: int, generator: torch.Generator
) -> interp.Corpora:
    """New text of all languages, one sentence per row, after a beginning-of-text token."""
    text = write_text(design, planted.words, n_sentences, generator)
    return interp.read_sentences(
        text,
        design.languages,
        planted.model,
        n_shards=5,
        bos="document",
        hygiene="off",
        progress=False,
    )
