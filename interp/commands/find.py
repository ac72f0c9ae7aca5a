"""The subcommands that choose neurons and compare choices: find, compare."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import interp
from interp.commands.common import ModelChoice, say, seeded
from interp.commands.effects import read_selection
from interp.commands.options import Positional
from interp.results.words import Half
from interp.scores.methods import METHODS, Settings
from interp.text.languages import label_name

if TYPE_CHECKING:
    import pandas
    import torch


@dataclass(frozen=True)
class Find:
    """Select the language neurons of a run, with LAPE or a rival.

    With methods that need counts of firing alone it also says how far to trust the selection.

        interp find results/collect --fraction 0.01
        interp find results/sentences --method precision --n 2000
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    method: Annotated[str, {name: each.says for name, each in METHODS.items()}] = "lape"
    """Some need a run with --sentences or --moments."""

    fraction: float = 0.01
    """Share of all units; for methods that rank them in each language, per language."""

    busy_quantile: float = 0.95
    """A neuron belongs to a language if its rate there is above this share of all rates."""

    n: int | None = None
    """Units per language, instead of --fraction.

    Kojima et al. take 2000, half of them the best detectors and half the worst."""

    which: Half = "both"
    """For precision: both, or n/2 of the top, bottom."""

    weight: float | None = None
    """Of entropy-less-peak's reward; by default as in the paper."""

    share: float = 0.95
    """For cumulative-mass: of each layer's firing."""

    stable: float = 0.95
    """Say how much text agreeing to this Jaccard takes."""

    out: Path | None = None
    """File; by default neurons.json (lape) or neurons-METHOD.json in the run's folder."""

    seed: int = 0
    """Seeds random neurons and the predicted agreement."""

    def run(self) -> None:
        self.check_options()
        run = interp.Run.open(self.run_folder)
        stats, origin, method = run.firing, run.provenance, METHODS[self.method]
        seen = interp.scores.measured(run, seeded(self.seed), lambda: reopen(origin))
        selection = interp.selections.selection_of(method, seen, self.settings)
        if method.of_run_sites:
            seen.precision.save(self.run_folder / "precision.safetensors", dict(origin))
        name = "neurons.json" if self.method == "lape" else f"neurons-{self.method}.json"
        out = self.out or self.run_folder / name
        used = (*method.options, "seed") if self.method == "random" else method.options
        selection.to_json(
            out,
            interp.results.artifacts.provenance(
                method="LAPE" if self.method == "lape" else self.method,
                counts=str(self.run_folder / "firing.safetensors"),
                run=origin,
                **{name: getattr(self, name) for name in used},
            ),
        )
        if method.needs is None and self.method != "random":
            frequency = interp.inference.selection_frequency(
                stats, lambda part: self.select(part).mask
            )
            show_selection(selection, frequency)
            if stats.n_shards >= 4:
                self.show_agreement(stats)
        else:
            show_selection(selection, None)
        say(f"The selection is in {out}.")

    @property
    def settings(self) -> Settings:
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})

    def check_options(self) -> None:
        """Refuse an option that is no number, or that the method would ignore."""
        if not 0 < self.stable < 1:
            raise ValueError(f"--stable is {self.stable}: give a share below 1, such as 0.95.")
        if not math.isfinite(self.fraction):
            raise ValueError(f"--fraction is {self.fraction}: give a share, such as 0.01.")
        read = METHODS[self.method].options
        for field in fields(Settings):
            if field.name not in read and getattr(self, field.name) != field.default:
                flags = [f"--{name.replace('_', '-')}" for name in (field.name, *read)]
                raise ValueError(
                    f"{flags[0]} changes nothing with --method {self.method}, which uses "
                    f"{', '.join(flags[1:])}: leave it out."
                )

    def select(self, stats: "interp.FiringStats") -> "interp.NeuronSelection":
        """The selection from counts of firing alone, which can be made from part of the text."""
        seen = interp.scores.measured(stats, seeded(self.seed))
        return interp.selections.selection_of(METHODS[self.method], seen, self.settings)

    def show_agreement(self, stats: "interp.FiringStats") -> None:
        """How far another run would agree, and how much text would do."""
        agreement = interp.selections.predicted_agreement(stats, self.select, seeded(self.seed))
        if math.isnan(agreement):
            say("Too few neurons belong to a language to say how far a repetition would agree.")
            return
        tokens = int(stats.tokens.sum(0).min())
        enough = math.ceil(tokens * interp.selections.text_for_agreement(agreement, self.stable))
        say(f"A repetition on as much other text would share a Jaccard of {agreement:.2f};")
        say(f"{self.stable:g} takes about {enough:,} tokens per language, {tokens:,} were read.")


@dataclass(frozen=True)
class Compare:
    """Lay selections side by side: sizes, overlap and chance, layers.

    interp compare results/demo results/demo/neurons-lap.json
    """

    selections: Positional[tuple[Path, ...]]
    """Two selections (.json) or more, or folders of runs after `interp find`."""

    out: Path | None = None
    """File for the table of pairs (.csv)."""

    def run(self) -> None:
        if len(self.selections) < 2:
            raise ValueError("One selection has nothing to be compared with: give two or more.")
        names = [chr(ord("A") + n % 26) * (1 + n // 26) for n in range(len(self.selections))]
        for name, path in zip(names, self.selections, strict=True):
            say(f"{name}  {path}")
        read = dict(zip(names, map(read_selection, self.selections), strict=True))
        named = interp.selections.on_common_units(read)
        say_what_is_left_out(read, named)
        show_sizes(named)
        table = interp.selections.overlaps(named)
        show_pairs(table)
        show_layers(named)
        if self.out is not None:
            interp.results.artifacts.write_text(self.out, table.to_csv(index=False))
            say(f"\nThe table of pairs is in {self.out}.")


def say_what_is_left_out(
    read: Mapping[str, "interp.NeuronSelection"], named: Mapping[str, "interp.NeuronSelection"]
) -> None:
    (common, sites), *_ = ((selection.languages, selection.sites) for selection in named.values())
    if left_out := {code for each in read.values() for code in each.languages} - set(common):
        say(f"Not in all selections, and left out: {', '.join(sorted(left_out))}")
    if any(selection.sites != sites for selection in read.values()):
        say("The selections have different sites: their MLP neurons alone are compared.")


def show_sizes(selections: Mapping[str, "interp.NeuronSelection"]) -> None:
    codes = next(iter(selections.values())).languages
    say("\nNeurons of each language, and of any:")
    say("   " + "".join(f"{code:>9}" for code in codes) + "      any")
    for name, each in selections.items():
        counts = [*each.counts().values(), int(each.union().sum())]
        say(f"{name:<3}" + "".join(f"{count:>9,}" for count in counts))


def show_pairs(table: "pandas.DataFrame") -> None:
    say("\nJaccard, and beside it that of random sets of as many neurons in every layer:")
    say("        language  neurons           both  Jaccard   chance  95 % of chance")
    for row in table.to_dict("records"):
        sizes = f"{row['neurons_a']:,} and {row['neurons_b']:,}"
        say(
            f"{row['a']:>3}{row['b']:>3}  {row['language']:<8}  {sizes:<14}{row['both']:>7,}  "
            f"{row['jaccard']:>7.3f}  {row['chance']:>7.3f}  "
            f"{row['chance_low']:.3f} to {row['chance_high']:.3f}"
        )


def show_layers(selections: Mapping[str, "interp.NeuronSelection"]) -> None:
    """Neurons by layer, the selections of one language below each other."""
    codes = next(iter(selections.values())).languages
    say("\nNeurons by layer:")
    for row, code in enumerate(codes):
        for name, each in selections.items():
            counts = each.layer_profile()[row].tolist()
            say(f"{code:<4}{name:<3}" + "".join(f"{count:>6}" for count in counts))


def show_selection(selection: "interp.NeuronSelection", frequency: "torch.Tensor | None") -> None:
    """Neurons per language: how many, in which layers, how often they come back."""
    names = {label: label_name(label) for label in selection.languages}
    first, second = max(2, *map(len, names)), max(10, *map(len, names.values()))
    head = f"{'language':<{first + second + 2}}neurons  exclusive  "
    say(head + ("by layer" if frequency is None else "kept  by layer"))
    alone = selection.languages_per_neuron() == 1
    for row, (code, count) in enumerate(selection.counts().items()):
        layers = " ".join(f"{n:>4}" for n in selection.layer_profile()[row].tolist())
        exclusive = int((selection[code] & alone).sum())
        kept = ""
        if frequency is not None:
            mine = frequency[row][selection[code]]
            kept = f"  {mine.mean().item():4.2f}" if len(mine) else "     -"
        name = f"{code:<{first}}  {names[code]:<{second}}"
        say(f"{name}{count:>7}  {exclusive:>9}{kept}  {layers}")
    if frequency is not None:
        say("kept: how often a neuron is selected again when one shard of text is left out")
    if not selection.neurons_only:
        for code in selection.languages:
            sites = [f"{site} {int(mask.sum())}" for site, mask in selection.units(code).items()]
            say(f"{code}  {', '.join(sites)}")


def reopen(origin: Mapping[str, Any]) -> "interp.NeuronModel":
    """The model that a run was collected with, refused if its weights are others by now."""
    choice = origin.get("settings", {}).get("choice") or {"model": origin["name"]}
    model = ModelChoice(**choice).open()
    if model.fingerprint["weights"] != origin["model"]["weights"]:
        raise ValueError(
            f"The weights of {choice['model']} are not those that the run was collected with: put "
            "that model back, or collect again."
        )
    return model
