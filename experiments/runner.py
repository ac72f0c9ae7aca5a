"""What every study has in common: its presets and options, where results go, and its claims.

A study is a question, a config, presets as differences from it, and a `main` that computes:

    experiment = Experiment("attribute_neurons", __doc__, main, Config, PRESETS)

    if __name__ == "__main__":
        experiment.command()

Results are in results/<study>/<preset>, those of another model than the shipped one in a folder
with its name. What is claimed is in `claims/*.toml`, committed before it is measured.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import tyro

import interp
from experiments.study import Study
from interp.inference.claims import (
    Claim,
    Measurement,
    Statement,
    judged,
    markdown,
    read_statements,
    save_claims,
)
from interp.inference.intervals import Estimate
from interp.results import artifacts
from interp.results.words import Attention

CLAIMS = Path(__file__).parent / "claims"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the studies of a model have in common."""

    study: Study = field(default_factory=Study)
    """Model and text; a study of tasks reads no text."""

    out: Path = Path()
    """Folder for the results."""


@dataclass(frozen=True)
class Preset:
    """How a run differs from the defaults of its study."""

    text: str
    """What it is, and how long it takes."""

    study: Study | None = None
    """Model and text; None: the shipped model and its statistics, which several studies share."""

    differences: Mapping[str, Any] = field(default_factory=dict)
    """Other settings."""


class Record:
    """What a run leaves: tables, and claims with their verdicts."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.claims: list[Claim] = []
        self._on = ""

    def open(self, study: Study, attention: Attention = "native") -> interp.NeuronModel:
        """The model of the study, which its claims are about from now on."""
        model = study.open(attention)
        self._on = model.name
        return model

    def tables(self, frames: Mapping[str, pd.DataFrame], float_format: str | None = None) -> None:
        """Write <name>.csv for each; a name may hold folders."""
        for name, frame in frames.items():
            text = frame.to_csv(index=False, float_format=float_format)
            artifacts.write_text(self.out / f"{name}.csv", text)

    def judge(
        self,
        file: str,
        measured: Mapping[str, Measurement | None],
        on: str = "",
        name: str = "{claim}",
        **words: str,
    ) -> list[Claim]:
        """Join what is stated in claims/<file>.toml with what was measured; see `judged`."""
        claims = judged(stated(file), measured, on or self._on, name, **words)
        self.claims += claims
        return claims

    def finish(self) -> None:
        """Save the claims and print them."""
        save_claims(self.claims, self.out / "claims.json")
        print(f"\n{markdown(self.claims)}", flush=True)


class Experiment:
    """A study that can be run from the command line or with a config."""

    def __init__(
        self,
        name: str,
        doc: str | None,
        main: Callable[[Any, Record], None],
        config: type[Any],
        presets: Mapping[str, Preset] | None = None,
    ) -> None:
        self.name, self._doc, self._main, self._config = name, doc, main, config
        every = presets or {}
        self.presets = {key: (each.text, self._of(key, each)) for key, each in every.items()}

    def run(self, config: Any) -> None:
        """Compute, and leave results in the folder of the config."""
        config = for_model(config)
        record = Record(config.out)
        self._main(config, record)
        record.finish()

    def command(self) -> None:
        """Run what the command line asks for."""
        if self.presets:
            self.run(chosen(self.presets, self._doc))
        else:
            self.run(tyro.cli(self._config, description=self._doc))

    def _of(self, key: str, preset: Preset) -> Any:
        """The config of a preset. One with a study of its own keeps its statistics in its folder,
        the others share those of the shipped model."""
        out = Path("results") / self.name / key
        study = preset.study
        if study is None:
            return self._config(out=out, **preset.differences)
        if study.model != Study.model:
            out /= "{model}"
        return self._config(study=replace(study, out=out), out=out, **preset.differences)


def chosen(presets: Mapping[str, tuple[str, Any]], doc: str | None) -> Any:
    """The preset that the command line names, with the options that it changes."""
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in presets.items()},
        {name: text for name, (text, _) in presets.items()},
    )
    return tyro.cli(parsed, description=doc)


def for_model(config: Any) -> Any:
    """The config with the name of its model where folders hold {model}, so that the results of two
    models never meet."""
    study = getattr(config, "study", None)
    if study is None:
        return config
    name = Path(study.model).name

    def filled(folder: Path) -> Path:
        return Path(str(folder).replace("{model}", name))

    return replace(config, study=replace(study, out=filled(study.out)), out=filled(config.out))


def stated(file: str) -> tuple[Statement, ...]:
    """What is claimed in claims/<file>.toml."""
    return read_statements(CLAIMS / f"{file}.toml")


def estimate(value: float, low: float, high: float) -> Estimate:
    """A number of a table with the 95 % interval beside it; its standard error is not known."""
    numbers = {"value": value, "standard_error": math.nan, "low": low, "high": high}
    tensors = {name: torch.tensor(each, dtype=torch.float64) for name, each in numbers.items()}
    return Estimate(**tensors, level=0.95)
