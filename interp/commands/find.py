"""The subcommands that choose neurons and compare choices: find, compare."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import interp
from interp.commands.common import ModelChoice, say, seeded
from interp.commands.effects import read_selection
from interp.commands.options import Positional
from interp.results.words import Half
from interp.text.languages import language

if TYPE_CHECKING:
    import pandas
    import torch

Method = Literal[
    "lape",
    "precision",
    "lap",
    "lave",
    "random",
    "entropy-less-peak",
    "cumulative-mass",
    "removal",
]

OPTIONS: dict[Method, tuple[str, ...]] = {
    "lape": ("fraction", "busy_quantile"),
    "precision": ("n", "fraction", "which"),
    "lap": ("n", "fraction"),
    "lave": ("fraction", "busy_quantile"),
    "random": ("n", "fraction", "seed"),
    "entropy-less-peak": ("fraction", "busy_quantile", "weight"),
    "cumulative-mass": ("share",),
    "removal": ("n", "fraction"),
}
"""What can change each method's selection."""


@dataclass(frozen=True)
class Find:
    """Select the language neurons of a run, with LAPE or a rival.

    With methods that need counts of firing alone it also says how far to trust the selection.

        interp find results/collect --fraction 0.01
        interp find results/sentences --method precision --n 2000
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    method: Method = "lape"
    """lape: least entropy of firing over languages; precision: best and worst detectors of the
    language among sentences (Kojima et al.), needs a run with --sentences; lap: fires most often;
    lave: least entropy of mean activation, needs a run with --moments; random: a control;
    entropy-less-peak: LAPE with a reward in the place of the busy bar (Zhang et al.);
    cumulative-mass: the fewest neurons that make up most firing of a layer (Tan et al.); removal:
    those without which the MLP's output changes most (PLND), needs a run with --moments."""

    fraction: float = 0.01
    """Share of all neurons to select; for precision, lap, random and removal, per language."""

    busy_quantile: float = 0.95
    """A neuron belongs to a language where it fires more than this share of all rates."""

    n: int | None = None
    """Units per language for precision, lap, random, removal.

    In the place of the fraction; Kojima et al. take 2000, half of them the best detectors and half
    the worst."""

    which: Half = "both"
    """For precision: both ends, or n/2 units of the top, bottom."""

    weight: float | None = None
    """For entropy-less-peak: of the reward; by default the heaviest that the paper allows."""

    share: float = 0.95
    """For cumulative-mass: of each layer's firing."""

    stable: float = 0.95
    """Say how much text agreeing to this Jaccard takes."""

    out: Path | None = None
    """File; by default neurons.json in the run's folder, and neurons-METHOD.json for other methods
    than lape."""

    seed: int = 0
    """Seeds random neurons and the predicted agreement."""

    def run(self) -> None:
        self.check_options()
        run = interp.Run.open(self.run_folder)
        stats, origin = run.firing, run.provenance
        selection = self.choose(run, origin)
        name = "neurons.json" if self.method == "lape" else f"neurons-{self.method}.json"
        out = self.out or self.run_folder / name
        selection.to_json(
            out,
            interp.results.artifacts.provenance(
                method="LAPE" if self.method == "lape" else self.method,
                counts=str(self.run_folder / "firing.safetensors"),
                run=origin,
                **{name: getattr(self, name) for name in OPTIONS[self.method]},
            ),
        )
        if self.method in ("lape", "lap", "entropy-less-peak", "cumulative-mass"):
            frequency = interp.inference.selection_frequency(
                stats, lambda part: self.select(part).mask
            )
            show_selection(selection, frequency)
            if stats.n_shards >= 4:
                self.show_agreement(stats)
        else:
            show_selection(selection, None)
        say(f"The selection is in {out}.")

    def check_options(self) -> None:
        """Refuse an option that is no number, or that the method would pass over in silence."""
        if not 0 < self.stable < 1:
            raise ValueError(f"--stable is {self.stable}: give a share below 1, such as 0.95.")
        if not math.isfinite(self.fraction):
            raise ValueError(f"--fraction is {self.fraction}: give a share, such as 0.01.")
        for name in ("fraction", "busy_quantile", "n", "which", "weight", "share"):
            if name not in OPTIONS[self.method] and getattr(self, name) != getattr(Find, name):
                used = ", ".join(f"--{each.replace('_', '-')}" for each in OPTIONS[self.method])
                raise ValueError(
                    f"--{name.replace('_', '-')} changes nothing with --method {self.method}, "
                    f"which uses {used}: leave it out."
                )

    def choose(self, run: "interp.Run", origin: Mapping[str, Any]) -> "interp.NeuronSelection":
        """The selection, from whatever the method needs."""
        from interp.scores.baselines import mean_removal_effect, random_score

        stats = run.firing
        n_layers, n_units = stats.rate.shape[1:]
        match self.method:
            case "precision":
                precision = interp.measure_precision(run.sentence_means)
                precision.save(self.run_folder / "precision.safetensors", dict(origin))
                n = self.size(precision.average_precision[0].numel())
                n -= n % 2 if self.n is None else 0  # a share of all units need not be even
                return interp.select_by_precision(precision, n, self.which)
            case "lave":
                return interp.select_by_value_entropy(
                    run.moments, self.fraction, self.busy_quantile
                )
            case "random":
                size = (len(stats.languages), n_layers, n_units)
                score = random_score(*size, seeded(self.seed))
                return self.highest(score, stats.languages)
            case "removal":
                moments = run.moments
                effect = mean_removal_effect(moments, reopen(origin))
                return self.highest(effect, moments.languages)
            case _:
                return self.select(stats)

    def select(self, stats: "interp.FiringStats") -> "interp.NeuronSelection":
        """The selection from counts of firing alone, which can be asked of part of the text too."""
        from interp.scores import baselines

        match self.method:
            case "lape":
                return interp.select_by_entropy(stats, self.fraction, self.busy_quantile)
            case "lap":
                return self.highest(stats.rate, stats.languages)
            case "entropy-less-peak":
                settings = (self.fraction, self.busy_quantile)
                weight = self.weight
                if weight is None:
                    weight = baselines.heaviest_weight(stats.rate, *settings)
                mask = baselines.select_by_entropy_less_peak(stats.rate, weight, *settings)
            case "cumulative-mass":
                mask = baselines.cumulative_mass(stats.total, self.share)
            case _:
                raise ValueError(f"{self.method} needs more than counts of firing.")
        return interp.NeuronSelection(mask, stats.languages)

    def highest(self, score: "torch.Tensor", languages: Sequence[str]) -> "interp.NeuronSelection":
        from interp.scores.baselines import highest

        mask = highest(score, self.size(score[0].numel()))
        return interp.NeuronSelection(mask, tuple(languages))

    def size(self, n_units: int) -> int:
        """Units per language."""
        return round(self.fraction * n_units) if self.n is None else self.n

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
        found = on_common_ground([read_selection(path) for path in self.selections])
        names = [chr(ord("A") + place % 26) * (1 + place // 26) for place in range(len(found))]
        for name, path in zip(names, self.selections, strict=True):
            say(f"{name}  {path}")
        named = dict(zip(names, found, strict=True))
        show_sizes(named)
        table = overlap_table(named)
        show_pairs(table)
        show_layers(named)
        if self.out is not None:
            interp.results.artifacts.write_text(self.out, table.to_csv(index=False))
            say(f"\nThe table of pairs is in {self.out}.")


def on_common_ground(
    selections: Sequence["interp.NeuronSelection"],
) -> "list[interp.NeuronSelection]":
    """The languages that all selections have, and the units that all were chosen from."""
    first, *others = selections
    common = [code for code in first.languages if all(code in each.languages for each in others)]
    if not common:
        raise ValueError(
            "The selections have no language in common: "
            + "; ".join(", ".join(each.languages) for each in selections)
            + "."
        )
    if left_out := {code for each in selections for code in each.languages} - set(common):
        say(f"Not in all selections, and left out: {', '.join(sorted(left_out))}")
    if any(each.sites != first.sites for each in others):
        say("Of different sites; compared are the neurons of the MLP alone.")
        selections = [each.neurons() for each in selections]
    return [each.languages_only(common) for each in selections]


def overlap_table(selections: Mapping[str, "interp.NeuronSelection"]) -> "pandas.DataFrame":
    """A row per pair of selections and language: sizes, what they share, and what chance gives."""
    import pandas

    rows = []
    for (a, one), (b, other) in combinations(selections.items(), 2):
        jaccard, chance = (
            interp.selections.jaccard_between(one, other),
            interp.selections.chance_jaccard(one, other),
        )
        both = (one & other).counts()
        rows += [
            {
                "a": a,
                "b": b,
                "language": code,
                "neurons_a": one.counts()[code],
                "neurons_b": other.counts()[code],
                "both": both[code],
                "jaccard": jaccard[row].item(),
                "chance": chance.value[row].item(),
                "chance_low": chance.low[row].item(),
                "chance_high": chance.high[row].item(),
            }
            for row, code in enumerate(one.languages)
        ]
    return pandas.DataFrame(rows)


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
    head = "language      neurons  exclusive  by layer"
    say(head if frequency is None else "language      neurons  exclusive  kept  by layer")
    alone = selection.languages_per_neuron() == 1
    for row, (code, count) in enumerate(selection.counts().items()):
        layers = " ".join(f"{n:>4}" for n in selection.layer_profile()[row].tolist())
        exclusive = int((selection[code] & alone).sum())
        kept = ""
        if frequency is not None:
            mine = frequency[row][selection[code]]
            kept = f"  {mine.mean().item():4.2f}" if len(mine) else "     -"
        name = language(code).name
        say(f"{code}  {name:<10}{count:>7}  {exclusive:>9}{kept}  {layers}")
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
