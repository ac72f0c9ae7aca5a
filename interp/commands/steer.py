"""The subcommand that lets a model write with neurons changed."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

import interp
from interp.commands.common import HERE, ModelChoice, OnRay, check_found_in, say, seeded
from interp.commands.effects import read_selection, run_of
from interp.results.words import Where
from interp.text.languages import check_languages

if TYPE_CHECKING:
    import torch

    import interp.interventions.residual
    import interp.runs.ray


@dataclass(frozen=True)
class Steer:
    """Let the model write with a language's neurons changed.

    Beside it stand the untouched model, as many random neurons, a prompt that names the language,
    and a push of the residual stream. A rate counts only texts that pass the guard: long enough,
    not repeating themselves, and as likely for the untouched model as natural text is. Run it
    again after an interruption, and it goes on.

        interp steer results/demo --to de ja --edit replace
        interp steer results/sentences/neurons-precision.json --to ja --edit median
    """

    neurons: Positional[Path]
    """Folder of a run with --moments after `interp find`, or a selection (.json) in it; for --edit
    median, of a run with --sentences."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model that the neurons were found in."""

    to: tuple[str, ...] = ()
    """Languages to steer to; by default those of the selection."""

    edit: Literal["replace", "add", "difference", "median"] = "difference"
    """difference: the language's mean less that of the others on top; add: its mean on top;
    replace: its mean instead; median: units of any site at its median (Kojima et al.)."""

    strength: float = 1.0
    """How often the mean is added."""

    site: Literal["act", "post"] = "act"
    """Means of act: act(gate); or of post: the output.

    Where they were measured, and where they are written."""

    others_off: bool = False
    """Also switch off the neurons of other languages.

    Where they are not the target's too."""

    where: Where = "all"
    """Tokens edited: all, prompt, generated, last."""

    prompt: str = ""
    """What every text begins with; by default nothing."""

    residual_layer: int | None = None
    """Where the residual stream is pushed; by default midway."""

    text: str = "babel"
    """Natural text, for the guard and the push."""

    n: int = 50
    """Texts per condition."""

    max_new_tokens: int = 64
    """Length of the texts."""

    temperature: float = 0.8
    """Of sampling; zero: the likeliest token."""

    seed: int = 0
    """Seeds texts and random neurons."""

    out: Path = Path("results/steer")
    """Folder for rates.csv and texts.csv."""

    on: Annotated[OnRay, tyro.conf.arg(name="")] = HERE
    """Who computes."""

    def run(self) -> None:
        from interp.runs.jobs import hired

        selection = read_selection(self.neurons)
        if self.edit == "median":
            if self.others_off:
                raise ValueError("--others-off is for neurons, and --edit median for all units.")
        else:
            selection = selection.neurons()  # moments are measured at them alone
        codes = check_languages(self.to or selection.languages)
        for code in codes:
            selection[code]  # all languages are there, before a large model is loaded
        edits = {code: self.edit_towards(code) for code in codes}
        model, ray = self.on.open(self.choice)
        selection.check_model(model)
        check_found_in(self.neurons, model)
        natural = natural_texts(model, self.text, selection.languages, self.max_new_tokens)
        corpora = interp.read_corpora(
            self.text, selection.languages, model, block_length=64, tokens=20_000, n_shards=2
        )
        # Units of all sites can be most of them, which leaves too few others to draw from.
        barred = None if self.edit == "median" else selection.union()
        random = selection.random_like(seeded(self.seed), exclude=barred)
        changes = {
            code: (self.changes(selection, code, edit), self.changes(random, code, edit))
            for code, edit in edits.items()
        }
        layer = model.n_layers // 2 if self.residual_layer is None else self.residual_layer
        plan = {
            **{"model": model.identity, "corpora": corpora.fingerprint, "layer": layer},
            "natural text": interp.results.artifacts.hash_of(natural),
            "changes": {
                code: [[change.plan for change in each] for each in both]
                for code, both in changes.items()
            },
            **{"strength": self.strength, "where": self.where, "prompt": self.prompt},
            "texts": self.settings,
        }
        from interp.runs.folder import begin

        begin(self.out, plan, interp.results.artifacts.provenance())
        with hired(model, ray) as crew:
            guards, residual = self.measured(model, natural, corpora, crew)
            rates = self.rates(model, guards, residual, layer, changes, crew)
        self.write_tables(rates)
        show_rates(rates)
        losses = ", ".join(f"{code} {guards[code].natural_loss:.2f}" for code in codes)
        say(f"median loss of natural text, nats per token: {losses}")
        say(f"All rates are in {self.out / 'rates.csv'}, the texts in texts.csv.")

    def write_tables(self, rates: Mapping[str, Mapping[str, "interp.GeneratedLanguages"]]) -> None:
        import pandas

        for name, frame in (("rates", "to_frame"), ("texts", "texts_frame")):
            tables = [
                getattr(found, frame)().assign(to=code, condition=condition)
                for code, row in rates.items()
                for condition, found in row.items()
            ]
            text = pandas.concat(tables).to_csv(index=False)
            interp.results.artifacts.write_text(self.out / f"{name}.csv", text)

    @property
    def settings(self) -> dict[str, Any]:
        """What texts are written with, other than prompt and changes."""
        return {
            **{"n": self.n, "max_new_tokens": self.max_new_tokens},
            **{"temperature": self.temperature, "seed": self.seed},
        }

    def edit_towards(self, code: str) -> "interp.Edit":
        if self.edit == "median":
            means = run_of(self.neurons).sentence_means
            return interp.override(interp.sentence_medians(means, code))
        moments = run_of(self.neurons).moments
        if self.edit == "replace":
            return interp.replace(moments, code, self.site)
        change = {"add": interp.add, "difference": interp.difference_of_means}[self.edit]
        return change(moments, code, self.strength, self.site)

    def changes(
        self, selection: "interp.NeuronSelection", code: str, edit: "interp.Edit"
    ) -> "tuple[interp.Change, ...]":
        """The language's neurons changed, those of the others off if that is asked for."""
        if self.edit == "median":
            return (interp.Change(selection.units(code), edit, self.where),)
        mine = interp.Change(selection[code], edit, self.where)
        if not self.others_off:
            return (mine,)
        others = selection.union() & ~selection[code]
        return (interp.Change(others, interp.deactivate, self.where), mine)

    def measured(
        self,
        model: "interp.NeuronModel",
        natural: dict[str, list[str]],
        corpora: "interp.Corpora",
        crew: "interp.runs.ray.Crew | None",
    ) -> "tuple[dict[str, interp.Guard], interp.interventions.residual.ResidualMeans]":
        """What natural text is like, for the guards and for the push of the residual stream."""
        from interp.interventions.residual import ResidualMeans
        from interp.results.bars import tqdm
        from interp.runs.jobs import finish

        works = {
            "guards": partial(_measure_guards, natural, self.max_new_tokens),
            "residual": partial(_measure_residual, corpora),
        }
        jobs = self.jobs({name: partial(_keep, work) for name, work in works.items()})
        with tqdm(total=2, desc="measuring natural text", delay=2, leave=False) as seen:
            load = partial(interp.results.artifacts.load, kind="NaturalPiece")
            guards, residual = (each.tensors for each in finish(jobs, load, seen, model, crew))
        bounds = dict(zip(natural, guards["bounds"].tolist(), strict=True))
        return (
            {code: interp.Guard(int(least), *others) for code, (least, *others) in bounds.items()},
            ResidualMeans(residual["mean"], corpora.languages),
        )

    def rates(
        self,
        model: "interp.NeuronModel",
        guards: Mapping[str, "interp.Guard"],
        residual: "interp.interventions.residual.ResidualMeans",
        layer: int,
        changes: "Mapping[str, tuple[tuple[interp.Change, ...], tuple[interp.Change, ...]]]",
        crew: "interp.runs.ray.Crew | None",
    ) -> "dict[str, dict[str, interp.GeneratedLanguages]]":
        """What is written in each language under every condition."""
        from interp.results.bars import tqdm
        from interp.runs.jobs import finish

        untouched: dict[str, tuple[str, tuple[interp.Change, ...]]] = {"no edit": (self.prompt, ())}
        every = dict(untouched)
        for code, (mine, random) in changes.items():
            units, push = residual.towards(code, layer, self.strength)
            every |= {
                f"{code} neurons": (self.prompt, mine),
                f"{code} random neurons": (self.prompt, random),
                f"{code} named in prompt": (interp.naming_prompt(code) + self.prompt, ()),
                f"{code} residual stream": (self.prompt, (interp.Change(units, push, self.where),)),
            }
        jobs = self.jobs(
            {
                name: partial(_write_and_judge, guards, prompt, within, self.settings)
                for name, (prompt, within) in every.items()
            }
        )
        with tqdm(total=len(jobs), desc="writing", unit="set", delay=2, leave=False) as seen:
            found = finish(jobs, interp.GeneratedLanguages.load, seen, model, crew)
        named = dict(zip(every, found, strict=True))
        return {
            code: {
                name.removeprefix(f"{code} "): each
                for name, each in named.items()
                if name in untouched or name.startswith(f"{code} ")
            }
            for code in changes
        }

    def jobs(self, works: Mapping[str, Any]) -> "list[interp.runs.ray.Job]":
        from interp.runs.ray import Job

        jobs = []
        for name, work in works.items():
            path = (self.out / "pieces" / f"{name.replace(' ', '-')}.safetensors").resolve()
            jobs.append(Job(name, path, partial(partial, work, path)))
        return jobs


def _keep(measure: Any, path: Path, model: "interp.NeuronModel") -> None:
    interp.results.artifacts.save(path, "NaturalPiece", measure(model), {}, {})


def _measure_guards(
    natural: Mapping[str, Sequence[str]], max_tokens: int, model: "interp.NeuronModel"
) -> dict[str, "torch.Tensor"]:
    import torch

    guards = interp.natural_guard(model, natural, max_tokens=max_tokens, progress=False)
    rows = [astuple(guards[code]) for code in natural]
    return {"bounds": torch.tensor(rows, dtype=torch.float64)}


def _measure_residual(
    corpora: "interp.Corpora", model: "interp.NeuronModel"
) -> dict[str, "torch.Tensor"]:
    return {"mean": interp.residual_means(model, corpora, progress=False).mean}


def _write_and_judge(
    guards: Mapping[str, "interp.Guard"],
    prompt: str,
    within: Sequence["interp.Change"],
    settings: Mapping[str, Any],
    path: Path,
    model: "interp.NeuronModel",
) -> None:
    """Texts of one condition, written within its changes and judged without them."""
    prompts = [prompt]
    found = interp.generated_languages(
        model, tuple(guards), within, guards, prompts=prompts, progress=False, **settings
    )
    found.save(path)


def natural_texts(
    model: "interp.NeuronModel", text: str, codes: Sequence[str], n_tokens: int
) -> dict[str, list[str]]:
    """Lines of the text, joined until they have so many tokens: what good output looks like."""
    corpora = interp.read_sentences(text, codes, model, n_shards=1, sentences=2000)
    found = {}
    for code in codes:
        rows, pieces, current = corpora.rows[code], [], []
        for ids, length in zip(rows.ids, rows.length.tolist(), strict=True):
            current += [*ids[:length].tolist(), *model.encode("\n")]
            if len(current) >= n_tokens:
                pieces.append(model.decode(current[:n_tokens]))
                current = []
        found[code] = pieces
    return found


def show_rates(rates: Mapping[str, Mapping[str, "interp.GeneratedLanguages"]]) -> None:
    """Share of texts in the target language that pass the guard, and of all that are in it."""
    names = list(next(iter(rates.values())))
    say("Share of good texts in the language (of all in it), median nats per token:\n")
    say("to  " + "".join(f"{name:>24}" for name in names))
    for code, row in rates.items():
        cells = []
        for found in row.values():
            good, every = found.good(code).value, found.rate(code).value
            median = float(found.loss.nanquantile(0.5))
            cells.append(f"{good:.2f} ({every:.2f}) {median:5.2f}")
        say(f"{code:<4}" + "".join(f"{cell:>24}" for cell in cells))
