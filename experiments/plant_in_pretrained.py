"""Neurons planted in a pretrained model: every MLP gets some more, and nothing else is changed.

What its MLPs read is measured on some text. A planted neuron's gate reads the direction that tells
best where a feature is on (Fisher's discriminant), and noise; its *effect size* is how far apart
that puts tokens with the feature and without, in standard deviations, as in experiments/planted.py.
A layer may not tell a feature that well: then the effect is as large as it can be, and `firing`
shows what that is. What the neurons write is made smaller until no language's loss rises by more
than the planting allows.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

import interp
from experiments.planted import KINDS, Truth
from experiments.pretrained_features import (
    Feature,
    Sentence,
    Tokens,
    corpora_of,
    features_of,
    some_of,
)
from interp.interventions.baked_weights import Weights
from interp.interventions.edits import Site

SHRINKAGE = 0.02
"""Added to every variance, as a share of it, so that a direction is not fitted to few tokens."""

LEAST_NOISE = 0.3
"""Of a gate, in its standard deviations, however hard its layer tells the feature."""


@dataclass(frozen=True, kw_only=True)
class Planting:
    """What is planted in a pretrained model, how strongly, and how often."""

    model: str
    """As `Study.model`."""

    languages: tuple[str, ...]
    """Of the parallel sentences; the first half pairs with the second."""

    planted: int
    """Language neurons per language."""

    decoys: int
    """Of each kind, and of each script, topic, pair and language."""

    chosen: int
    """Neurons that every method chooses for each language: more than are planted, since the model
    has neurons of its own."""

    effects: tuple[float, ...]
    """Of planted neurons."""

    decoy_effect: float
    """Of decoys."""

    write: float
    """Norm of what a neuron writes, relative to the model's own; halved until `loss` holds."""

    loss: float
    """How far the loss of a language may rise at most, in nats per token."""

    loss_sentences: int
    """Sentences per language that it is measured on."""

    seeds: int
    """Models of each strength."""

    learned: int
    """Sentences per language that features are learned from, at most."""

    read: int
    """Sentences per language that methods read, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Moments of what the MLP of one layer reads."""

    gram: Float64[Tensor, "d_model d_model"]
    """Mean of products."""

    mean: Float64[Tensor, " d_model"]

    on: Float64[Tensor, "feature d_model"]
    """Mean over tokens that have a feature."""

    share: Float64[Tensor, " feature"]
    """Of tokens that have it."""

    @cached_property
    def covariance(self) -> Float64[Tensor, "d_model d_model"]:
        return self.gram - torch.outer(self.mean, self.mean)

    @cached_property
    def _root(self) -> Float64[Tensor, "d_model d_model"]:
        """A root of the covariance with `SHRINKAGE`, the median's where a dimension is constant."""
        own = self.covariance.diagonal()
        own = own.where(own > 1e-9 * own.median(), own.median())
        return torch.linalg.cholesky(self.covariance + SHRINKAGE * torch.diag(own))

    @cached_property
    def constant(self) -> Float64[Tensor, " d_model"]:
        """The direction whose product with an input is nearest to one; one on average."""
        direction = torch.cholesky_solve(rearrange(self.mean, "d -> d 1"), self._root)[:, 0]
        return direction / (self.mean @ direction)

    def noise(self, drawn: Float64[Tensor, "neuron d_model"]) -> Float64[Tensor, "neuron d_model"]:
        """Directions of mean zero and variance one, from normal numbers."""
        directions = torch.linalg.solve_triangular(self._root.T, drawn.T, upper=True).T
        directions = directions - torch.outer(directions @ self.mean, self.constant)
        return directions / rearrange(self.deviation(directions.T), "neuron -> neuron 1")

    def deviation(self, weight: Float64[Tensor, "d_model neuron"]) -> Float64[Tensor, " neuron"]:
        """The standard deviation of what neurons read through a weight."""
        variance = einsum(weight, self.covariance, weight, "a neuron, a b, b neuron -> neuron")
        return variance.clamp_min(0).sqrt()

    def following(
        self, feature: int, on: float, off: float
    ) -> tuple[Float64[Tensor, " d_model"], float]:
        """A direction along which a feature is told best, and its variance around these means.

        Its product with an input is `on` on average where the feature is on, and `off` elsewhere.
        """
        share, there = self.share[feature], self.on[feature]
        elsewhere = (self.mean - share * there) / (1 - share)
        apart = rearrange(there - elsewhere, "d -> d 1")
        tells = torch.cholesky_solve(apart, self._root)[:, 0]
        parts = torch.stack([tells, self.constant], dim=1)
        wanted = torch.tensor([on, off], dtype=torch.float64)
        direction = parts @ torch.linalg.solve(torch.stack([there, elsewhere]) @ parts, wanted)
        variance = direction @ self.covariance @ direction - share * (1 - share) * (on - off) ** 2
        return direction, max(variance.item(), 0.0)

    def size(self, weight: Tensor) -> float:
        """The median standard deviation of what the model's own neurons read through a weight."""
        return self.deviation(weight.double().cpu()).median().item()


def read_inputs(
    model: interp.NeuronModel,
    encoded: Sequence[Sequence[int]],
    features: Sequence[Feature],
    at_once: int = 16,
) -> list[Inputs]:
    """Of every layer, on sentences of text tokens; the model's prefix is put before each."""
    on = torch.stack([feature.on for feature in features if feature.on is not None]).double()
    n_prefix, start = len(model.prefix_ids), 0
    total: list[dict[str, Tensor]] = [{} for _ in range(model.n_layers)]
    for first in range(0, len(encoded), at_once):
        part = encoded[first : first + at_once]
        longest = max(len(ids) for ids in part) + n_prefix
        ids = torch.zeros(len(part), longest, dtype=torch.int64)
        text = torch.zeros(len(part), longest, dtype=torch.bool)
        for row, sentence in enumerate(part):
            stop = n_prefix + len(sentence)
            ids[row, :stop] = torch.tensor([*model.prefix_ids, *sentence])
            text[row, n_prefix:stop] = True
        mask = text.clone()
        mask[:, :n_prefix] = True
        stop = start + int(text.sum())
        _add_inputs(model, ids, mask, text, on[:, start:stop], total)
        start = stop
    assert start == on.shape[1], "features are about other text"
    count = reduce(on, "feature token -> feature", "sum")
    return [
        Inputs(
            gram=sums["gram"] / start,
            mean=sums["mean"] / start,
            on=sums["on"] / rearrange(count, "feature -> feature 1"),
            share=count / start,
        )
        for sums in total
    ]


@torch.inference_mode()
def _add_inputs(
    model: interp.NeuronModel,
    ids: Int64[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
    text: Bool[Tensor, "batch pos"],
    on: Float64[Tensor, "feature token"],
    total: list[dict[str, Tensor]],
) -> None:
    def hook_for(layer: int) -> Any:
        def add(inputs: Tensor, hook: Any) -> None:
            state = inputs[text].double()
            sums = {"gram": state.T @ state, "mean": reduce(state, "token d -> d", "sum")}
            sums["on"] = on @ state
            for name, value in sums.items():
                total[layer][name] = total[layer].get(name, 0) + value

        return add

    hooks = [(f"blocks.{layer}.mlp.hook_in", hook_for(layer)) for layer in range(model.n_layers)]
    with model.hooks(hooks):
        model.body(ids, mask)


# ---------------------------------------------------------------- the host


@dataclass(frozen=True, kw_only=True, eq=False)
class Planted:
    """A pretrained model with planted neurons."""

    model: interp.NeuronModel
    truth: Truth

    write: float
    """Norm of what they write, relative to the model's own neurons."""

    rise: float
    """The greatest rise of a language's loss, in nats per token."""


class Host:
    """A pretrained model, and what its MLPs read on some text."""

    def __init__(
        self,
        model: interp.NeuronModel,
        planting: Planting,
        learned: Sequence[Sentence],
        read: Sequence[Sentence],
    ) -> None:
        if not model.gated:
            raise ValueError(
                f"{model.name} has MLPs without gates: plant in a gated model, such as Babel."
            )
        self.model, self.planting = model, planting
        codes, per_language = planting.languages, range(len(planting.languages))
        learned = [x for row in per_language for x in some_of(learned, row, planting.learned)]
        encoded = model.encode_batch([sentence.text for sentence in learned])
        self._tokens = Tokens.of(encoded, learned, model.n_vocab)
        self.features = features_of(self._tokens, model, planting.planted, planting.decoys)
        self.inputs = read_inputs(model, encoded, self.features)
        self.text = corpora_of(model, read, codes, planting.read, n_shards=1)
        self._judged = corpora_of(model, read, codes, planting.loss_sentences, n_shards=5)
        self._before = self._loss(model)

    def plant(self, effect: float, seed: int, decoys: Collection[str]) -> Planted:
        """Models of one seed differ only in the effect, the decoys, and how much neurons write."""
        planting, write, rise = self.planting, self.planting.write, math.inf
        added = self._added(effect, torch.Generator().manual_seed(seed), decoys)
        for _ in range(10):
            model = self._widened(added, write)
            rise = (self._loss(model) - self._before).max().item()
            if rise <= planting.loss:
                return Planted(model=model, truth=added.truth, write=write, rise=rise)
            write /= 2
        raise ValueError(
            f"The loss still rises by {rise:.3f} nats per token where neurons write {write:.4f} of "
            f"what others do, and at most {planting.loss} is allowed: allow more, or plant fewer."
        )

    def with_silent_neurons(self) -> interp.NeuronModel:
        """The model with as many more neurons, all of whose weights are zero."""
        zeros = torch.zeros(self._shape, dtype=torch.float64)
        kind = torch.zeros(self._shape[:2], dtype=torch.int64)
        own = torch.zeros(len(self.planting.languages), *kind.shape, dtype=torch.bool)
        truth = self._truth(own, kind, kind.double(), 0.0)
        return self._widened(Added(gate=zeros, linear=zeros, direction=zeros, truth=truth), 0.0)

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Layers, neurons that each gets, and the width of the residual stream."""
        n_neurons, n_layers = sum(x.neurons for x in self.features), self.model.n_layers
        return n_layers, math.ceil(n_neurons / n_layers), self.model.d_model

    def _loss(self, model: interp.NeuronModel) -> Float64[Tensor, " language"]:
        losses = interp.evaluations.losses_under(
            model, self._judged, {"nothing": None}, progress=False
        )
        nats, tokens = losses.nats[:, 0].sum(dim=0), losses.tokens.sum(dim=0)
        return nats / tokens

    def _added(self, effect: float, generator: torch.Generator, decoys: Collection[str]) -> "Added":
        """The weights of new neurons, which are zero for kinds that are left out."""
        planting, shape = self.planting, self._shape

        def drawn() -> Float64[Tensor, "layer neuron d_model"]:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        order = iter(torch.randperm(shape[0] * shape[1], generator=generator).tolist())
        threshold = 1.2 + 0.4 * torch.randn(*shape[:2], generator=generator, dtype=torch.float64)
        sign = torch.randint(2, shape[:2], generator=generator).double() * 2 - 1
        noise, linear, direction = drawn(), drawn(), drawn()
        kind = torch.zeros(shape[:2], dtype=torch.int64)
        own = torch.zeros(len(planting.languages), *shape[:2], dtype=torch.bool)
        gate = torch.zeros(shape, dtype=torch.float64)
        written, measured = self._language_directions(), itertools.count()
        for feature in self.features:
            slots = [divmod(next(order), shape[1]) for _ in range(feature.neurons)]
            number = None if feature.on is None else next(measured)
            is_language = feature.kind == "language"
            if not is_language and feature.kind not in decoys:
                continue
            for at in slots:
                kind[at] = KINDS.index(feature.kind)
                if number is None:
                    threshold[at] = -2  # fires nearly always
                if is_language:
                    own[(feature.group, *at)] = True
                    direction[at] = sign[at] * written[feature.group]
                by = effect if is_language else planting.decoy_effect
                gate[at] = _gate(self.inputs[at[0]], number, by, threshold[at].item(), noise[at])
        for layer, inputs in enumerate(self.inputs):
            linear[layer] = 0.5 * inputs.noise(linear[layer])
            linear[layer] += torch.outer(sign[layer], inputs.constant)
        linear[kind == 0] = 0
        return Added(
            gate=gate,
            linear=linear,
            direction=direction / direction.norm(dim=-1, keepdim=True),
            truth=self._truth(own, kind, threshold, effect),
        )

    def _truth(
        self,
        own: Bool[Tensor, "language layer neuron"],
        kind: Int64[Tensor, "layer neuron"],
        threshold: Float64[Tensor, "layer neuron"],
        effect: float,
    ) -> Truth:
        """With the model's own neurons first, which are background."""
        n_layers, d_mlp = self.model.n_layers, self.model.d_mlp
        none = torch.zeros(len(own), n_layers, d_mlp, dtype=torch.bool)
        zeros = torch.zeros(n_layers, d_mlp, dtype=torch.int64)
        return Truth(
            interp.NeuronSelection(torch.cat([none, own], dim=-1), self.planting.languages),
            torch.cat([zeros, kind], dim=-1),
            torch.cat([zeros.double(), threshold], dim=-1),
            effect,
        )

    def _language_directions(self) -> Float64[Tensor, "language d_model"]:
        """What makes the tokens of each language likelier than those of all."""
        counts = self._tokens.counts.double()
        share = counts / reduce(counts, "language vocab -> language 1", "sum")
        apart = share - reduce(share, "language vocab -> 1 vocab", "mean")
        unembed = self.model.bridge.W_U.detach().double().cpu()
        directions = einsum(apart, unembed, "language vocab, d_model vocab -> language d_model")
        return directions / directions.norm(dim=1, keepdim=True)

    def _widened(self, added: "Added", write: float) -> interp.NeuronModel:
        """The model with more neurons, which write so much."""
        model = self.model
        weights = Weights(model)
        for layer, inputs in enumerate(self.inputs):
            gate, w_in, w_out = model.w_gate(layer), model.w_in(layer), model.w_out(layer)
            assert gate is not None
            norm = w_out.double().norm(dim=1).median().item()
            rows: dict[Site, Tensor] = {
                "pre": inputs.size(gate) * added.gate[layer],
                "pre_linear": inputs.size(w_in) * added.linear[layer],
                "post": write * norm * added.direction[layer],
            }
            for site, new in rows.items():
                location = weights.location(layer, site)
                stored = weights.tensors[location.weight]
                by_neuron = stored.T if (site == "post") != location.transposed else stored
                if len(by_neuron) != model.d_mlp:
                    raise ValueError(
                        f"{model.architecture} stores {location.weight} with other weights: plant "
                        "in a model with separate projections, such as Llama, Qwen or Gemma 3."
                    )
                wider = torch.cat([by_neuron, new.to(by_neuron)])
                back = wider.T if by_neuron is not stored else wider
                weights.tensors[location.weight] = back.contiguous()
        weights.config.intermediate_size = model.d_mlp + added.gate.shape[1]
        name = f"{model.name} with planted neurons"
        return interp.wrap(weights.runnable(), model.tokenizer, name=name)


def _gate(
    inputs: Inputs,
    number: int | None,
    effect: float,
    threshold: float,
    noise: Float64[Tensor, " d_model"],
) -> Float64[Tensor, " d_model"]:
    """What a gate reads: a feature, or nothing (None), and noise, with a variance of one.

    The effect is smaller where the layer cannot tell the feature that well.
    """
    random = inputs.noise(rearrange(noise, "d -> 1 d"))[0]
    if number is None:
        return random - threshold * inputs.constant
    _, variance = inputs.following(number, 0.5, -0.5)
    effect = min(effect, math.sqrt((1 - LEAST_NOISE**2) / variance))
    reads, variance = inputs.following(number, effect / 2 - threshold, -effect / 2 - threshold)
    return reads + max(math.sqrt(max(1 - variance, 0)), LEAST_NOISE) * random


@dataclass(frozen=True, kw_only=True, eq=False)
class Added:
    """Weights of new neurons, in units of the model's own."""

    gate: Float64[Tensor, "layer neuron d_model"]
    linear: Float64[Tensor, "layer neuron d_model"]
    direction: Float64[Tensor, "layer neuron d_model"]
    """What each writes."""

    truth: Truth
    """Of the widened model."""


def firing(rate: Float64[Tensor, "language layer neuron"], truth: Truth) -> dict[str, float]:
    """How often planted neurons fire on their language, and on others; by kind, decoys on the
    language they fire most in, and on the others."""
    own = truth.selection.mask
    planted = truth.is_kind("language")
    n_others = len(own) - 1
    everywhere = reduce(rate[:, planted], "language neuron -> neuron", "sum")
    at_home = reduce((rate * own)[:, planted], "language neuron -> neuron", "sum")
    cells = {"own": at_home.mean(), "others": (everywhere - at_home).mean() / n_others}
    for kind in KINDS[2:]:
        part = rate[:, truth.is_kind(kind)]
        if part.shape[1]:
            most = reduce(part, "language neuron -> neuron", "max")
            all_of_it = reduce(part, "language neuron -> neuron", "sum")
            cells[f"{kind}_most"] = most.mean()
            cells[f"{kind}_others"] = (all_of_it - most).mean() / n_others
    return {name: float(value) for name, value in cells.items()}
