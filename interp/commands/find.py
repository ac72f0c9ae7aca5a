"""The subcommands that choose neurons and compare choices: find, compare."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import interp
from interp.commands.common import (
    ModelChoice,
    goes_ahead,
    open_model,
    save_table,
    say,
    say_table,
    seeded,
)
from interp.commands.effects import open_run, read_selection
from interp.commands.forecasts import of_scoring, of_selecting
from interp.commands.options import Positional
from interp.commands.remembered import found_in, is_run, memory_of, run_behind
from interp.results.words import Half
from interp.scores.methods import METHODS, NEEDS_HISTOGRAMS, NEEDS_SENTENCES, Settings
from interp.text.languages import names_beside, worded

if TYPE_CHECKING:
    import pandas
    import torch

_MOST_COLUMNS = 24
"""Layers that a table shows one by one."""

_TRIAL = 10
"""A text that would have to be so many times as long is a trial."""


@dataclass(frozen=True)
class Find:
    """Select the language neurons of a run, by LAPE or another method.

    If the method needs counts of firing alone, it also says how far to trust the selection.

        interp find results/demo --fraction 0.03
        interp find results/demo/sentences --method precision --n 2000
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    method: Annotated[str, tuple(METHODS)] = "lape"
    """Most need counts alone; the others say what to collect."""

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
    """Of entropy-less-peak's reward; else as in the paper."""

    share: float = 0.95
    """For cumulative-mass: of each layer's firing."""

    stable: float = 0.95
    """Jaccard of selections from two texts: say how much text it takes."""

    model: str | None = None
    """Where the run's model is now, if it was moved."""

    out: Path | None = None
    """File; by default neurons.json (lape) or neurons-METHOD.json in the run's folder."""

    seed: int = 0
    """Seeds random neurons and the predicted agreement."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    def run(self) -> "pandas.DataFrame | None":
        self.check_options()
        run = open_run(self.run_folder)
        stats, origin, method = run.firing, run.provenance, METHODS[self.method]
        opened = cache(lambda: reopen(self.run_folder, self.model))
        if self.is_forecast and not self.goes_ahead(run, opened):
            return None
        selection, precision = self.selected(run, opened)
        if precision is not None:
            precision.save(self.run_folder / "precision.safetensors", dict(origin))
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
        frequency = agreement = None
        if self.selects_again:
            frequency = interp.inference.selection_frequency(
                stats, lambda part: self.select(part).mask
            )
        show_selection(selection, frequency)
        if self.selects_again and stats.n_shards >= 4:
            agreement = interp.selections.predicted_agreement(stats, self.select, seeded(self.seed))
            self.show_agreement(stats, agreement)
        say(f"The selection is in {out}.")
        return summary(selection, frequency).assign(agreement=agreement)

    def selected(
        self, run: "interp.Run", opened: "Callable[[], interp.NeuronModel]"
    ) -> "tuple[interp.NeuronSelection, interp.scores.Precision | None]":
        """The selection, and the precision that it was made by; nothing else that was measured,
        which may be large, outlives this."""
        method = METHODS[self.method]
        seen = interp.scores.measured(run, seeded(self.seed), opened)
        selection = interp.selections.selection_of(method, seen, self.settings)
        return selection, seen.precision if method.of_run_sites else None

    @property
    def selects_again(self) -> bool:
        """Whether it selects again from parts of the counts, to say how far to trust the result."""
        return METHODS[self.method].needs is None and self.method != "random"

    @property
    def is_forecast(self) -> bool:
        """Whether it can take more than ten seconds on a model that is used."""
        method = METHODS[self.method]
        scored = method.looks_at_weights or method.needs in (NEEDS_SENTENCES, NEEDS_HISTOGRAMS)
        return scored or self.selects_again

    def goes_ahead(self, run: "interp.Run", opened: "Callable[[], interp.NeuronModel]") -> bool:
        """Whether to select, which from counts is done again: without each shard, and from both
        halves of eight splits."""
        if self.selects_again:
            stats = run.firing
            times = 1 + stats.n_shards + 16 * (stats.n_shards >= 4)
            measure = partial(of_selecting, stats, self.select, times)
            return goes_ahead(measure, "fewer shards (interp collect --n-shards).", self.dry_run)
        measure = partial(of_scoring, run, METHODS[self.method], opened)
        return goes_ahead(measure, "fewer labels or sentences (interp collect).", self.dry_run)

    @property
    def settings(self) -> Settings:
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})

    def check_options(self) -> None:
        """Refuse an option that is no number, or that the method would ignore."""
        if not 0 < self.stable < 1:
            raise ValueError(f"--stable is {self.stable}: give a share below 1, such as 0.95.")
        if self.dry_run and not self.is_forecast:
            raise ValueError(
                f"--method {self.method} selects once, in seconds: leave --dry-run out."
            )
        if self.n == 0:
            raise ValueError("--n is 0: give 1 or more units for each label.")
        if self.model is not None and not METHODS[self.method].looks_at_weights:
            raise ValueError(
                f"--method {self.method} does not look at the model: leave --model out."
            )
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

    def show_agreement(self, stats: "interp.FiringStats", agreement: float) -> None:
        """How far another run would agree, and how much text would do."""
        if math.isnan(agreement):
            few = "Too few neurons belong to a language to say how far a repetition would agree."
            say(worded(few, stats.languages))
            return
        least, most = (int(end) for end in stats.tokens.sum(0).aminmax())
        enough = math.ceil(least * interp.selections.text_for_agreement(agreement, self.stable))
        again = f"would have a Jaccard of {agreement:.2f} with this one"
        say(f"From as much other text, a selection {again};")
        per = worded("tokens per language", stats.languages)
        trial = ": treat these as a trial" if enough > _TRIAL * least else ""
        read = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        say(f"{self.stable:g} takes about {enough:,} {per}, {read} were read{trial}.")


@dataclass(frozen=True)
class Compare:
    """Lay selections side by side: sizes, overlap and chance, layers.

    Of the runs of two models, such as base and instruct, also the firing rates of the same neurons,
    and the effects of switching them off if `interp deactivate` has measured both.

        interp find results/demo --method lap
        interp compare results/demo results/demo/neurons-lap.json
        interp compare runs/base runs/instruct --out base-instruct.csv
    """

    selections: Positional[tuple[Path, ...]]
    """Two selections (.json) or more, or folders of runs after `interp find`."""

    out: Path | None = None
    """File for the table of pairs (.csv); of two models, also OUT-neurons.csv, every neuron's rates
    and selections, and OUT-effects.csv, if both are measured."""

    def run(self) -> "pandas.DataFrame":
        if len(self.selections) < 2:
            raise ValueError("One selection has nothing to be compared with: give two or more.")
        names = [chr(ord("A") + n % 26) * (1 + n // 26) for n in range(len(self.selections))]
        for name, path in zip(names, self.selections, strict=True):
            say(f"{name}  {path}")
        read = dict(zip(names, map(read_selection, self.selections), strict=True))
        sentence = of_other_models(dict(zip(names, self.selections, strict=True)))
        if sentence:
            say(sentence)
        named = interp.selections.on_common_units(read)
        say_what_is_left_out(read, named)
        show_sizes(named)
        table = interp.selections.overlaps(named)
        show_pairs(table)
        show_layers(named)
        if self.out is not None:
            save_table(table, self.out)
            say(f"\nThe table of pairs is in {self.out}.")
        if sentence and len(self.selections) == 2 and all(map(is_run, self.selections)):
            show_two_models(*self.selections, dict(named), self.out)
        return table


def of_other_models(selections: Mapping[str, Path]) -> str:
    """A sentence if the selections are known to be of models with different weights; else empty."""
    runs = {name: found_in(path) for name, path in selections.items()}
    models = {
        name: (run["model"]["weights"], run.get("name", "a model without a name"))
        for name, run in runs.items()
        if isinstance(run.get("model"), dict) and "weights" in run["model"]
    }
    if len({weights for weights, _ in models.values()}) < 2:
        return ""
    names = "; ".join(f"{name} of {model}" for name, (_, model) in models.items())
    return (
        f"These are neurons of different models ({names}): equal indices are the same neurons only "
        "where one model was trained on from the other."
    )


def show_two_models(
    before: Path,
    after: Path,
    selections: "Mapping[str, interp.NeuronSelection]",
    out: Path | None,
) -> None:
    """Print how rates and effects differ between two models, and save the rates."""
    runs = [open_run(path) for path in (before, after)]
    same_text = len({str(run.provenance.get("corpora")) for run in runs}) == 1
    change = interp.selections.rate_change(runs[0].firing, runs[1].firing, paired=same_text)
    text = "the same text" if same_text else "other text: intervals are wider"
    say(f"\nFiring rates of the same neurons, B against A ({text}):")
    names = ["correlation", "95 % interval", "rate differs", "mean change"]
    rows = [[worded("language", change.languages), *names]]
    for row in change.summary().to_dict("records"):
        interval = f"{row['correlation_low']:.3f} to {row['correlation_high']:.3f}"
        cells = [f"{row['correlation']:.3f}", interval, f"{row['differs']:.1%}"]
        rows.append([row["language"], *cells, f"{row['mean_change']:+.4f}"])
    say_table(rows)
    say("rate differs: share of neurons whose 95 % interval excludes zero; 5 % by chance alone")
    show_effects(before, after, out)
    if out is not None:
        neurons = out.with_name(f"{out.stem}-neurons.csv")
        known = {name: one for name, one in selections.items() if one.neurons_only}
        save_table(change.to_frame(known), neurons)
        say(f"Every neuron's rates are in {neurons}.")


def show_effects(before: Path, after: Path, out: Path | None) -> None:
    """Print and save how the own effect of each label's neurons differs, if both runs have it."""
    from interp.evaluations.perplexity import PerplexityMatrix
    from interp.runs.folder import read_plan

    folders = [path / "deactivate" for path in (before, after)]
    files = [folder / "matrix.safetensors" for folder in folders]
    if not all(file.is_file() for file in files):
        say("Effects are compared once `interp deactivate` has measured them in both runs.")
        return
    same_text = len({str(read_plan(folder)["corpora"]) for folder in folders}) == 1
    matrices = [PerplexityMatrix.load(file) for file in files]
    effects = interp.evaluations.effect_change(*matrices, paired=same_text)
    said = "\nNats per token that a language loses with its own neurons off, each model's own:"
    say(worded(said, effects["language"]))
    rows = [[worded("language", effects["language"]), "A", "B", "change", "95 % interval"]]
    for row in effects.to_dict("records"):
        cells = [f"{row[name]:+.3f}" for name in ("before", "after", "change")]
        interval = f"{row['change_low']:+.3f} to {row['change_high']:+.3f}"
        rows.append([row["language"], *cells, interval])
    say_table(rows)
    if out is not None:
        file = out.with_name(f"{out.stem}-effects.csv")
        save_table(effects, file)
        say(f"The effects are in {file}.")


def say_what_is_left_out(
    read: Mapping[str, "interp.NeuronSelection"], named: Mapping[str, "interp.NeuronSelection"]
) -> None:
    (common, sites), *_ = ((selection.languages, selection.sites) for selection in named.values())
    every = {code for selection in read.values() for code in selection.languages}
    if left_out := every - set(common):
        say(f"Not in all selections, and left out: {', '.join(sorted(left_out))}")
    if any(selection.sites != sites for selection in read.values()):
        say("The selections have different sites: their MLP neurons alone are compared.")


def show_sizes(selections: Mapping[str, "interp.NeuronSelection"]) -> None:
    codes = next(iter(selections.values())).languages
    say(worded("\nNeurons of each language, and of any:", codes))
    rows = [["", *codes, "any"]]
    for name, selection in selections.items():
        counts = [*selection.counts().values(), int(selection.union().sum())]
        rows.append([name, *(f"{count:,}" for count in counts)])
    say_table(rows)


def show_pairs(table: "pandas.DataFrame") -> None:
    say("\nJaccard, and beside it that of random sets of as many neurons in every layer:")
    names = ["neurons", "both", "Jaccard", "chance", "95 % of chance"]
    rows = [["", "", worded("language", table["language"]), *names]]
    for row in table.to_dict("records"):
        sizes = f"{row['neurons_a']:,} and {row['neurons_b']:,}"
        numbers = [f"{row['both']:,}", f"{row['jaccard']:.3f}", f"{row['chance']:.3f}"]
        interval = f"{row['chance_low']:.3f} to {row['chance_high']:.3f}"
        rows.append([row["a"], row["b"], row["language"], sizes, *numbers, interval])
    say_table(rows, stay=3)


def show_layers(selections: Mapping[str, "interp.NeuronSelection"]) -> None:
    """Neurons by layer, the selections of one language below each other."""
    codes = next(iter(selections.values())).languages
    say("\nNeurons by layer:")
    parts = parts_of_depth(next(iter(selections.values())).n_layers)
    rows = [["", "", *headings(parts)]]
    for row, code in enumerate(codes):
        for name, selection in selections.items():
            rows.append([code, name, *by_part(selection.layer_profile()[row].tolist(), parts)])
    say_table(rows, stay=2)


def parts_of_depth(n_layers: int) -> list[range]:
    """The layers that share a column: one each, or a quarter of many."""
    if n_layers <= _MOST_COLUMNS:
        return [range(layer, layer + 1) for layer in range(n_layers)]
    return [range(n * n_layers // 4, (n + 1) * n_layers // 4) for n in range(4)]


def headings(parts: Sequence[range]) -> list[str]:
    """The headings of columns of layers."""
    names = [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return [f"layer{'s' * (len(parts[0]) > 1)} {names[0]}", *names[1:]]


def by_part(profile: Sequence[int], parts: Sequence[range]) -> list[str]:
    """The neurons of each part of the depth."""
    return [f"{sum(profile[layer] for layer in part):,}" for part in parts]


def summary(
    selection: "interp.NeuronSelection", frequency: "torch.Tensor | None" = None
) -> "pandas.DataFrame":
    """One row per language: how many neurons it has, how many alone, how often they come back.

    `by_layer` are their numbers in every layer. NaN: nothing says how often.
    """
    import pandas

    alone, rows = selection.languages_per_neuron() == 1, []
    for row, (code, count) in enumerate(selection.counts().items()):
        kept = math.nan
        if frequency is not None and count:
            kept = frequency[row][selection[code]].mean().item()
        exclusive = int((selection[code] & alone).sum())
        rows.append((code, count, exclusive, kept, selection.layer_profile()[row].tolist()))
    columns = ["language", "neurons", "exclusive", "kept", "by_layer"]
    return pandas.DataFrame(rows, columns=columns)


def show_selection(selection: "interp.NeuronSelection", frequency: "torch.Tensor | None") -> None:
    """Neurons per language: how many, in which layers, how often they come back."""
    kept, parts = ["kept"] * (frequency is not None), parts_of_depth(selection.n_layers)
    names = names_beside(selection.languages)
    stay = 1 + len(names[0])
    rows = [[*[""] * stay, "neurons", "exclusive", *kept, *headings(parts)]]
    for row, name in zip(summary(selection, frequency).to_dict("records"), names, strict=True):
        cells = [row["language"], *name, f"{row['neurons']:,}", f"{row['exclusive']:,}"]
        if frequency is not None:
            cells.append(f"{row['kept']:.2f}" if row["neurons"] else "-")
        rows.append([*cells, *by_part(row["by_layer"], parts)])
    say_table(rows, stay=stay)
    if len(parts) < selection.n_layers:
        say("layers: in quarters of the depth; interp report draws every layer")
    if len(selection.languages) > 1:
        say(worded("exclusive: selected for no other language", selection.languages))
    if frequency is not None:
        say("kept: how often a neuron is selected again when one shard of text is left out")
    if not selection.neurons_only:
        for code in selection.languages:
            sites = [f"{site} {int(mask.sum())}" for site, mask in selection.units(code).items()]
            say(f"{code}  {', '.join(sites)}")


def reopen(run_folder: Path, model: str | None) -> "interp.NeuronModel":
    """The model that a run was collected with, refused if its weights are others by now."""
    memory = memory_of(run_folder)
    opened, _ = open_model(ModelChoice(model), memory)
    if opened.fingerprint["weights"] != run_behind(run_folder)["model"]["weights"]:
        raise ValueError(
            f"The weights of {opened.name} are not those that {run_folder} was collected with: "
            "name that model with --model, or collect again."
        )
    return opened
