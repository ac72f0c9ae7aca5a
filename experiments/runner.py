"""What every study shares: presets and options, folders of results, and claims.

A study is a question, a config, presets as differences from it, and a `main` that computes:

    experiment = Experiment("attribute_neurons", __doc__, main, Config, PRESETS)

    if __name__ == "__main__":
        experiment.command()

Results are in results/<study>/<preset>; for models other than the shipped one, in a subfolder with
the model's name. Claims are in `claims/*.toml`, committed before they are measured.
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
from experiments.real_models import MODELS
from experiments.study import Study
from interp.inference.claims import markdown
from interp.inference.statements import Measurement, Statement, judged, read_statements
from interp.results import artifacts
from interp.results.words import Attention
from interp.runs.folder import begin

EXPERIMENTS = Path(__file__).parent
CLAIMS = EXPERIMENTS / "claims"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options that the studies of a model share."""

    study: Study = field(default_factory=Study)
    """Model and text; a study of tasks reads no text."""

    out: Path = Path()
    """Folder for the results."""


@dataclass(frozen=True)
class Preset:
    """How a run differs from the defaults of its study."""

    text: str
    """What the preset does, and how long it takes."""

    study: Study | None = None
    """Model and text; None: the shipped model, whose statistics several studies share."""

    differences: Mapping[str, Any] = field(default_factory=dict)
    """Other settings."""


class Record:
    """Output of a run: tables, and claims with their verdicts."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.claims: list[interp.inference.Claim] = []
        self.on = ""
        """What claims are about: the model opened last."""

    def open(self, study: Study, attention: Attention = "native") -> interp.NeuronModel:
        """Load the model of the study; later claims are about this model."""
        model = study.open(attention)
        self.on = MODELS[study.model].title if study.model in MODELS else model.name
        return model

    def tables(self, frames: Mapping[str, pd.DataFrame], float_format: str | None = None) -> None:
        """Write each as <name>.csv; a name may contain folders."""
        for name, frame in frames.items():
            text = frame.to_csv(index=False, float_format=float_format)
            artifacts.write_text(self.out / f"{name}.csv", text)

    def begin_pieces(self, settings: Mapping[str, Any]) -> None:
        """Refuse to go on with the pieces of a run with other settings."""
        begin(self.out / "pieces", settings)

    def piece(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Rows that take long: those that a killed run kept, or else made, and kept."""
        path = self.out / "pieces" / f"{name}.csv"
        if not path.exists():
            artifacts.write_text(path, make().to_csv(index=False))
        return pd.read_csv(path, keep_default_na=False, na_values=[""])

    def judge(
        self,
        file: str,
        measured: Mapping[str, Measurement | None],
        on: str = "",
        name: str = "{claim}",
        **words: str,
    ) -> list[interp.inference.Claim]:
        """Judge the statements of claims/<file>.toml by their measurements; see `judged`."""
        claims = judged(stated(file), measured, on or self.on, name, **words)
        self.claims += claims
        return claims

    def finish(self) -> None:
        """Save the claims, with the commit of the code, and print them."""
        commit = artifacts.provenance().get("commit", "")
        claims = [replace(claim, commit=commit) for claim in self.claims]
        interp.inference.save_claims(claims, self.out / "claims.json")
        print(f"\n{markdown(claims)}", flush=True)


class Experiment:
    """A study that runs from the command line or with a config."""

    def __init__(
        self,
        name: str,
        doc: str | None,
        main: Callable[[Any, Record], None],
        config: type[Any],
        presets: Mapping[str, Preset] | None = None,
    ) -> None:
        self.name, self._doc, self._main, self._config = name, doc, main, config
        presets = presets or {}
        self.presets = {key: (p.text, self._of(key, p)) for key, p in presets.items()}

    def run(self, config: Any) -> None:
        """Compute, and write results to the folder of the config."""
        config = for_model(config)
        record = Record(config.out)
        self._main(config, record)
        record.finish()

    def command(self) -> None:
        """Run what the command line requests."""
        if self.presets:
            self.run(chosen(self.presets, self._doc))
        else:
            self.run(tyro.cli(self._config, description=self._doc))

    def _of(self, key: str, preset: Preset) -> Any:
        """The config of a preset. A preset with its own study keeps statistics in its own folder,
        unless that study names one; the others share those of the shipped model."""
        out = Path("results") / self.name / key
        study = preset.study
        if study is None:
            return self._config(out=out, **preset.differences)
        if study.model != Study.model:
            out /= "{model}"
        if study.out == Study.out:
            study = replace(study, out=out)
        return self._config(study=study, out=out, **preset.differences)


def chosen(presets: Mapping[str, tuple[str, Any]], doc: str | None) -> Any:
    """The preset named on the command line, with its options."""
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in presets.items()},
        {name: text for name, (text, _) in presets.items()},
    )
    return tyro.cli(parsed, description=doc)


def for_model(config: Any) -> Any:
    """The config with {model} and {languages} in its folders replaced, so that the results of two
    models, or statistics of other languages, never mix."""
    study = getattr(config, "study", None)
    if study is None:
        return config
    words = {"{model}": Path(study.model).name, "{languages}": "-".join(study.languages)}
    folders = [str(folder) for folder in (config.out, study.out)]
    for word, value in words.items():
        folders = [folder.replace(word, value) for folder in folders]
    out, statistics = map(Path, folders)
    return replace(config, study=replace(study, out=statistics), out=out)


def stated(file: str) -> tuple[Statement, ...]:
    """The statements of claims/<file>.toml."""
    return read_statements(CLAIMS / f"{file}.toml")


def estimate(value: float, low: float, high: float) -> interp.Estimate:
    """A number from a table with its 95 % interval; the standard error is unknown (NaN)."""
    numbers = torch.tensor([value, math.nan, low, high], dtype=torch.float64)
    return interp.Estimate(numbers[0], numbers[1], numbers[2], numbers[3], level=0.95)
