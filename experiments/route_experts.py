"""Are languages routed to experts of their own at both ends of a mixture, and to the same between?

    python -m experiments.route_experts tiny --study.model FOLDER       # any mixture, little text
    python -m experiments.route_experts olmoe       # 7 billion parameters, of the hub; not run here

Reads   a mixture of experts; text
Writes  results/route_experts/<preset>/routing.csv, claims.json

Bandarkar et al. (2025) compare each language with English by the weights of routing, on FLORES-200,
in OLMoE and three larger mixtures. Here all languages are compared with one another, by the experts
that are chosen.
"""

from dataclasses import dataclass

import torch

import interp
from experiments import runner
from experiments.runner import Experiment, Preset, Record
from experiments.study import Study
from interp.inference.statements import Measurement
from interp.scores.routing import Routing, ends_less_middle

EXCEEDED = 0.05
"""Share of the shuffled draws that exceed the control."""


@dataclass(frozen=True, kw_only=True)
class Config(runner.Config):
    """What is measured."""

    n_draws: int = 199
    """How often languages are shuffled."""


PRESETS = {
    "tiny": Preset(
        "Two of Babel's languages, little text; name a mixture with --study.model.",
        Study(languages=("de", "ja"), tokens=5120, n_shards=10, block_length=64),
        {"n_draws": 39},
    ),
    "olmoe": Preset(
        "allenai/OLMoE-1B-7B-0924 on parallel sentences of 7 languages.",
        Study(
            model="allenai/OLMoE-1B-7B-0924",
            text="paws-x",
            languages=("en", "de", "es", "fr", "ja", "ko", "zh"),
            tokens=60_000,
            dtype="bfloat16",
        ),
    ),
}


def measure(routing: Routing, generator: torch.Generator, n_draws: int) -> Measurement:
    """How much more both ends differ by language than the middle, beside shuffled languages."""
    shuffled = torch.stack([ends_less_middle(row) for row in routing.control(generator, n_draws)])
    return Measurement(routing.ends_less_middle, shuffled.quantile(1 - EXCEEDED).item())


def main(config: Config, record: Record) -> None:
    study = config.study
    model = record.open(study)
    text = study.read(model, "train")
    run = interp.collect(model, text, study.folder(model) / "statistics")
    routing = interp.scores.routing_of(run.firing)
    generator = torch.Generator().manual_seed(study.seed)
    table = routing.layer_frame(generator, config.n_draws)
    record.tables({"routing": table})
    print(table.to_string(index=False, float_format="%.4f"))
    record.judge("route_experts", {"routing-u-shape": measure(routing, generator, config.n_draws)})


experiment = Experiment("route_experts", __doc__, main, Config, PRESETS)

if __name__ == "__main__":
    experiment.command()
