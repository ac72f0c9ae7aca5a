"""Can a model learn a language by its neurons alone, and what does it forget?

    python -m experiments.train_neurons tiny                           # a minute or two
    python -m experiments.train_neurons babel --learned-text FOLDER    # Babel learns Indonesian
    python -m experiments.train_neurons gemma --learned-text FOLDER    # Gemma 3 270M, the same

Reads   a model and text of its languages; a folder with <language>.txt[.gz] of the learned one
Writes  results/train_neurons/<preset>/losses.csv (every way, rate and seed, by language),
        ways.csv (gain and forgetting of every way), claims.json

A language's neurons are those of LAPE, with the learned language among the others. Beside them:
as many random neurons per layer, all weights, and a LoRA with as many weights. Every way has the
learning rate that gains most with the first seed, on the first half of the held-out text; numbers
are of the other half. A killed run goes on with the next training, and processes that are given
the same folder share the seeds.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import interp
from experiments import gemma, runner
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.evaluations import Losses
from interp.inference.intervals import mean_over_examples
from interp.inference.statements import Measurement
from interp.interventions import Recipe
from interp.interventions.baked_weights import Weights
from interp.interventions.movable import Movable, movables_of
from interp.interventions.training_loop import TrainingLoop
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.runs.folder import begin
from interp.runs.jobs import finish
from interp.runs.ray import Job
from interp.text.languages import label_name

NOTHING, NEURONS, RANDOM, FULL, LORA = (
    *("nothing", "its neurons", "random neurons"),
    *("full tuning", "LoRA of the same size"),
)
WAYS = (NEURONS, RANDOM, FULL, LORA)


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is trained, on what, and how."""

    learned: str = "id"
    """The language to learn, which the study's languages do not have."""

    learned_text: str = "corpus"
    """Folder of its text; documents are lines."""

    learned_tokens: int = 100_000
    """Tokens of it to train on, and to select neurons with."""

    fraction: float = 0.01
    """Of all neurons, selected by LAPE over all languages."""

    recipe: Recipe = field(default_factory=Recipe)
    """Of every way, but for the learning rate and the seed."""

    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Learning rates, ascending; of every way they are tried until the gain falls."""

    seeds: int = 5
    """Trainings of every way; the seed orders the text and draws the control."""


PRESETS = {
    "tiny": Preset(
        "Every part once, on the shipped model, which knows the language already.",
        Study(languages=("en", "ja"), tokens=4000, n_shards=4, block_length=32),
        {
            **{"learned": "de", "learned_text": "babel", "learned_tokens": 4000, "seeds": 2},
            **{"recipe": Recipe(steps=3, rows=4, rows_at_once=4), "rates": (1e-4, 1e-3)},
        },
    ),
    "babel": Preset(
        "The shipped model, and a seventh language, of which it reads 13,000 tokens.",
        Study(tokens=12_000, held_out_tokens=1280, n_shards=4, block_length=64),
        {
            **{"fraction": 0.05, "rates": (5e-4, 2e-3, 8e-3, 3.2e-2)},
            "recipe": Recipe(steps=50, rows=4, rows_at_once=4, warmup=0.1),
        },
    ),
    "gemma": gemma.preset(
        learned="sw",
        recipe=Recipe(steps=50, rows=4, rows_at_once=2),
        rates=(5e-5, 3e-4, 2e-3),
        seeds=3,
    ),
}


# ---------------------------------------------------------------- text


def texts(
    config: Config, model: interp.NeuronModel
) -> tuple[interp.Corpora, interp.Corpora, interp.Corpora]:
    """To select neurons with, to train on, and to measure: the last is of other documents."""
    study = config.study
    learned = [
        document.text
        for document in interp.text.read_documents(config.learned_text, config.learned)
    ]
    source = {code: list(study.documents(code)) for code in study.languages}
    source[config.learned] = learned
    settings: dict[str, Any] = {
        **{"model": model, "block_length": study.block_length, "held_out": 0.5},
        **{"bos": study.bos, "n_shards": study.n_shards, "progress": False, "hygiene": "off"},
    }
    codes = (*study.languages, config.learned)
    selected = interp.read_corpora(source, codes, tokens=study.tokens, split="train", **settings)
    trained = interp.read_corpora(
        source, (config.learned,), tokens=config.learned_tokens, split="train", **settings
    )
    tokens = study.held_out_tokens or study.tokens
    measured = interp.read_corpora(source, codes, tokens=tokens, split="held_out", **settings)
    return selected, trained, measured


# ---------------------------------------------------------------- training


def trained(
    model: interp.NeuronModel,
    way: str,
    masks: Mapping[str, Tensor],
    text: interp.Corpora,
    recipe: Recipe,
) -> Any:
    """A plain model, trained in one of the ways."""
    weights = Weights(model)
    if way in masks:
        movables = movables_of(weights, {"post": masks[way]})
        plain = weights.runnable()
    else:
        weights.tensors = {name: tensor.clone() for name, tensor in weights.tensors.items()}
        plain = weights.runnable()
        if way == LORA:
            plain = with_lora(plain, n_weights(model, masks[NEURONS]), recipe.seed)
        movables = whole(plain, "lora_" if way == LORA else "")
    loop = TrainingLoop(plain.to(model.device), movables, text, recipe)
    for _ in range(recipe.steps):
        loop.advance()
    return plain.merge_and_unload() if way == LORA else plain


def whole(plain: nn.Module, part: str) -> list[Movable]:
    """All of every parameter whose name has this part."""
    return [
        Movable(name=name, axis=0, ids=torch.arange(len(parameter)))
        for name, parameter in plain.named_parameters()
        if part in name
    ]


def n_weights(model: interp.NeuronModel, mask: Tensor) -> int:
    """How many weights chosen neurons have, without biases."""
    return int(mask.sum()) * model.d_model * (3 if model.gated else 2)


def with_lora(plain: nn.Module, size: int, seed: int) -> Any:
    """The model with an untrained LoRA at all linear layers, of the rank nearest to this size."""
    import peft

    linear = [
        module
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in name
    ]
    by_rank = sum(module.in_features + module.out_features for module in linear)
    rank = max(1, round(size / by_rank))
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(plain, settings)


def measured_losses(
    model: interp.NeuronModel, plain: Any, way: str, text: interp.Corpora
) -> Losses:
    """Losses of a trained model, read as a user would: saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        after = interp.load(folder, dtype=model.dtype, device=model.device)
        return interp.evaluations.losses_under(after, text, {way: None}, progress=False)


# ---------------------------------------------------------------- tables


def side_by_side(losses: Sequence[Losses], shards: slice) -> Losses:
    """One result of several models, of some shards of the same text."""
    return Losses(
        nats=torch.cat([part.nats[shards] for part in losses], dim=1),
        tokens=losses[0].tokens[shards],
        bytes=losses[0].bytes[shards],
        interventions=tuple(name for part in losses for name in part.interventions),
        languages=losses[0].languages,
    )


def gain_and_forgetting(losses: Losses, learned: str) -> tuple[float, float]:
    """Fall of the loss on the learned language, and mean rise on the others."""
    rise = losses.increase.value[1]
    column = losses.languages.index(learned)
    others = [index for index in range(len(losses.languages)) if index != column]
    return -rise[column].item(), rise[others].mean().item()


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """One trained model."""

    way: str
    rate: float
    seed: int

    losses: Losses
    """Beside the model as it was, on the half of the held-out text that chooses no rate."""

    first_gain: float
    """On the half that chooses the rate."""


class Trainings:
    """All trainings of a study; each is saved once it is measured, and not repeated."""

    def __init__(self, config: Config, model: interp.NeuronModel) -> None:
        self._config, self._model = config, model
        selected, self._text, self._held_out = texts(config, model)
        corpora = (selected, self._text, self._held_out)
        plan = {"model": model.identity, "corpora": [part.fingerprint for part in corpora]}
        plan |= {"learned": config.learned, "fraction": config.fraction, "seed": config.study.seed}
        begin(config.out, plan | {"recipe": config.recipe.facts})
        stats = interp.collect(model, selected, config.out / "statistics", progress=False).firing
        self._neurons = interp.select_by_entropy(stats, config.fraction)
        if not self._neurons[config.learned].any():
            raise ValueError(
                f"LAPE selects no neuron of {config.learned} among {config.fraction:.2%} of all: "
                "give a larger --fraction."
            )
        self._before = interp.evaluations.losses_under(
            model, self._held_out, {NOTHING: None}, out=config.out / "before", progress=False
        )

    def all(self) -> list[Training]:
        """Every way with one rate after another at the first seed, then with its best at others."""
        rates, seeds = self._config.rates, range(1, self._config.seeds)
        trainings = []
        with tqdm(total=len(WAYS) * (len(rates) + len(seeds)), desc="Training") as bar:
            for way in WAYS:
                tried: list[Training] = []
                for rate in rates:
                    tried += self._finished([(way, rate, 0)], bar)
                    if len(tried) > 1 and tried[-1].first_gain < tried[-2].first_gain:
                        break
                bar.total -= len(rates) - len(tried)
                best = max(tried, key=lambda training: training.first_gain)
                trainings += [best, *(training for training in tried if training is not best)]
                trainings += self._finished([(way, best.rate, seed) for seed in seeds], bar)
        return trainings

    def _finished(self, wanted: Sequence[tuple[str, float, int]], bar: Any) -> list[Training]:
        """These trainings, made now unless their files exist."""
        jobs = []
        for way, rate, seed in wanted:
            name = f"{way.replace(' ', '-')}-{rate:g}-{seed}"
            path = (self._config.out / "trainings" / f"{name}.safetensors").resolve()
            jobs.append(Job(name, path, partial(self._make, path, way, rate, seed)))
        return [
            self._read(way, rate, seed, after)
            for (way, rate, seed), after in zip(
                wanted, finish(jobs, Losses.load, bar, self._model, None), strict=True
            )
        ]

    def _make(
        self, path: Path, way: str, rate: float, seed: int, model: interp.NeuronModel
    ) -> None:
        learned = self._config.learned
        generator = torch.Generator().manual_seed(self._config.study.seed + seed)
        control = self._neurons.random_like(generator, exclude=self._neurons.union())
        masks = {NEURONS: self._neurons[learned], RANDOM: control[learned]}
        recipe = replace(self._config.recipe, learning_rate=rate, seed=seed)
        plain = trained(model, way, masks, self._text, recipe)
        measured_losses(model, plain, way, self._held_out).save(path, artifacts.provenance())

    def _read(self, way: str, rate: float, seed: int, after: Losses) -> Training:
        middle = self._held_out.n_shards // 2
        first, second = (
            side_by_side([self._before, after], half)
            for half in (slice(middle), slice(middle, None))
        )
        gain, _ = gain_and_forgetting(first, self._config.learned)
        return Training(way=way, rate=rate, seed=seed, losses=second, first_gain=gain)


def tables(trainings: Sequence[Training], learned: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every training by language; gain and forgetting of every way with its best rate."""
    frames, rows, best = [], [], dict[str, float]()
    for training in trainings:
        frame = training.losses.to_frame()
        own = frame[frame["intervention"] == training.way]
        frames.append(own.assign(rate=training.rate, seed=training.seed))
        # The first of each way is the best of its first seed.
        if training.rate == best.setdefault(training.way, training.rate):
            gain, forgetting = gain_and_forgetting(training.losses, learned)
            cells = {"way": training.way, "rate": training.rate, "seed": training.seed}
            rows.append(cells | {"gain": gain, "forgetting": forgetting})
    return pd.concat(frames, ignore_index=True), pd.DataFrame(rows)


def measures(ways: pd.DataFrame, learned: str) -> dict[str, Measurement | None]:
    """The claims; their intervals are over seeds, at which all ways are paired."""

    def column(way: str, name: str) -> Tensor:
        own = ways.loc[ways["way"] == way].sort_values("seed")
        return torch.tensor(own[name].tolist(), dtype=torch.float64)

    def claim(ours: Tensor, control: Tensor) -> Measurement:
        value, other = mean_over_examples(ours), mean_over_examples(control)
        return Measurement(value, other, mean_over_examples(ours - control), words=words)

    words = {"learned": learned}
    gain = {way: column(way, "gain") for way in WAYS}
    forgetting = {way: column(way, "forgetting") for way in WAYS}
    return {
        "train-gain": claim(gain[NEURONS] / gain[FULL], gain[RANDOM] / gain[FULL]),
        "train-forgetting": claim(
            forgetting[NEURONS] / forgetting[FULL], forgetting[LORA] / forgetting[FULL]
        ),
        "train-beyond-lora": claim(gain[NEURONS] - gain[LORA], gain[RANDOM] - gain[LORA]),
        "train-beyond-full": claim(gain[NEURONS] - gain[FULL], gain[RANDOM] - gain[FULL]),
    }


def main(config: Config, record: Record) -> None:
    model = record.open(config.study)
    losses, ways = tables(Trainings(config, model).all(), config.learned)
    record.tables({"losses": losses, "ways": ways}, float_format="%.5g")
    print(ways.to_string(index=False, float_format="%.4g"))
    record.judge("train_neurons", measures(ways, label_name(config.learned)))


experiment = Experiment("train_neurons", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()
