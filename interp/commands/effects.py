"""The subcommands that change neurons: switch them off, steer with them, bake them in."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import tyro
from tyro.conf import Positional

from interp import artifacts
from interp.bake import bake
from interp.collect import open_sentence_means
from interp.commands.common import ModelChoice, say
from interp.corpora import read_corpora, read_sentences
from interp.documents import Split
from interp.evaluations.controls import naming_prompt, residual_means
from interp.evaluations.generation import (
    GeneratedLanguages,
    Guard,
    generated_languages,
    natural_guard,
)
from interp.evaluations.perplexity import PerplexityMatrix, perplexity_matrix
from interp.interventions import (
    Edit,
    add,
    deactivate,
    difference_of_means,
    intervene,
    override,
    replace,
    scale,
    sentence_medians,
)
from interp.languages import check_languages, language
from interp.model import NeuronModel, Where
from interp.selection import NeuronSelection
from interp.stats import ActivationMoments


def read_selection(path: Path) -> NeuronSelection:
    """The selection in a file, or in the folder of a run after `interp find`."""
    file = path / "neurons.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. Make it with: interp find RUN_FOLDER")
    return NeuronSelection.from_json(file)


def read_moments(path: Path) -> ActivationMoments:
    """The moments beside a selection."""
    folder = path if path.is_dir() else path.parent
    file = folder / "moments.safetensors"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing, and this edit needs mean activations: run `interp collect` with "
            "--moments, or use --edit deactivate or scale."
        )
    return ActivationMoments.load(file)


@dataclass(frozen=True)
class Deactivate:
    """Turn each language's neurons off, read every language, and compare with random neurons.

    interp deactivate results/demo
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json)."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model that the neurons were found in."""

    text: str = "babel"
    """"babel", a folder of <language>.txt[.gz] or .jsonl[.gz], or a dataset on the hub. Better not
    the text that the neurons were found on."""

    languages: tuple[str, ...] = ()
    """Languages to read; by default those of the selection."""

    tokens: int | None = None
    """Tokens per language; by default all of the text."""

    block_length: int = 128
    """Tokens per row; each row is predicted from its own beginning."""

    n_shards: int = 20
    """Random groups of documents; intervals come from leaving one out at a time."""

    split: Split = "all"
    """train, held_out: one half of the documents, if the other was given to `interp collect`."""

    n_draws: int = 3
    """Random sets of as many neurons in every layer, for each language."""

    seed: int = 0
    """Seeds the random sets."""

    out: Path = Path("results/deactivate")
    """Folder for the matrix; the same command goes on where it was interrupted."""

    def run(self) -> None:
        selection = read_selection(self.neurons)
        codes = check_languages(self.languages or selection.languages)
        model = self.choice.open()
        selection.check_model(model)
        corpora = read_corpora(
            self.text,
            codes,
            model,
            block_length=self.block_length,
            tokens=self.tokens,
            n_shards=self.n_shards,
            split=self.split,
            held_out=0.5,
        )
        matrix = perplexity_matrix(
            model,
            selection,
            corpora,
            n_draws=self.n_draws,
            generator=torch.Generator().manual_seed(self.seed),
            out=self.out,
        )
        artifacts.write_text(self.out / "matrix.csv", matrix.to_frame().to_csv(index=False))
        show_matrix(matrix)
        say(f"The matrix is in {self.out / 'matrix.safetensors'}, as a table in matrix.csv.")


def show_matrix(matrix: PerplexityMatrix) -> None:
    """The increases, the half-widths of their intervals, the control, and the test."""
    increase, control = matrix.increase, matrix.control
    say("Nats per token more, with a language's neurons off (± half of the 95 % interval):\n")
    say("off  neurons  " + "".join(f"{code:>15}" for code in matrix.languages) + "   random")
    for row, code in enumerate(matrix.off):
        cells = []
        for column, _ in enumerate(matrix.languages):
            value = increase.value[row, column].item()
            reach = (increase.high - increase.low)[row, column].item() / 2
            cells.append(f"{value:+8.3f} ±{reach:5.3f}")
        own = matrix.languages.index(code) if code in matrix.languages else None
        random = math.nan if own is None else control.value[row, own].item()
        chance = "       -" if math.isnan(random) else f"{random:+8.3f}"
        say(f"{code:<4}{matrix.neurons[row]:>8}  " + "".join(f"{c:>15}" for c in cells) + chance)
    say("random: as many random neurons in every layer, the same language read, mean over draws")
    found = matrix.diagonal()
    mean = found.mean
    say(
        f"\nOwn language against the others: {mean.value.item():+.3f} nats "
        f"({mean.low.item():+.3f} to {mean.high.item():+.3f}), "
        f"p = {found.test.p_value:.2g} over {found.test.n_arrangements:,} relabelings."
    )
    say(
        f"The own language suffers most in {len(found.largest_in_row)} of {len(found.languages)} "
        "rows."
    )


@dataclass(frozen=True)
class Steer:
    """Let the model write with a language's neurons changed: in which language, and how well?

    Beside it stand the untouched model, as many random neurons, a prompt that names the language,
    and a push of the residual stream. A rate counts only texts that pass the guard: long enough,
    not repeating themselves, and as likely for the untouched model as natural text is.

        interp steer results/demo --to de ja --edit replace
        interp steer results/sentences/neurons-precision.json --to ja --edit median
    """

    neurons: Positional[Path]
    """Folder of a run with --moments, after `interp find`; or a selection (.json) beside them. For
    --edit median a selection in the folder of a run with --sentences."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model that the neurons were found in."""

    to: tuple[str, ...] = ()
    """Languages to steer to; by default those of the selection."""

    edit: Literal["replace", "add", "difference", "median"] = "difference"
    """replace: the neurons give their mean in the language; add: that much on top; difference: the
    mean in the language less that in the others on top; median: units of any site give the median
    of their means over sentences, as Kojima et al. do."""

    strength: float = 1.0
    """How often the mean is added."""

    site: Literal["act", "post"] = "act"
    """Where means were measured and are written: act(gate), or the neuron's output."""

    others_off: bool = False
    """Also switch off the neurons of the other languages, where they are not the target's too."""

    where: Where = "all"
    """Which tokens are edited."""

    prompt: str = ""
    """What every text begins with; by default nothing."""

    residual_layer: int | None = None
    """Layer for the push of the residual stream; by default the middle one."""

    text: str = "babel"
    """Natural text of these languages, for the guard and the residual stream's means."""

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

    def run(self) -> None:
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
        model = self.choice.open()
        selection.check_model(model)
        natural = natural_texts(model, self.text, selection.languages, self.max_new_tokens)
        guards = natural_guard(model, natural, max_tokens=self.max_new_tokens)
        corpora = read_corpora(
            self.text, selection.languages, model, block_length=64, tokens=20_000, n_shards=2
        )
        residual = residual_means(model, corpora)
        layer = model.n_layers // 2 if self.residual_layer is None else self.residual_layer
        generator = torch.Generator().manual_seed(self.seed)
        # Units of all sites can be most of them, which leaves too few others to draw from.
        barred = None if self.edit == "median" else selection.union()
        random = selection.random_like(generator, exclude=barred)
        untouched = self.judged(model, guards, self.prompt, nullcontext())
        rates: dict[str, dict[str, GeneratedLanguages]] = {}
        for code, edit in edits.items():
            units, push = residual.towards(code, layer, self.strength)
            conditions = {
                "neurons": (self.prompt, self.edited(model, selection, code, edit)),
                "random neurons": (self.prompt, self.edited(model, random, code, edit)),
                "named in prompt": (naming_prompt(code) + self.prompt, nullcontext()),
                "residual stream": (self.prompt, intervene(model, units, push, self.where)),
            }
            rates[code] = {"no edit": untouched} | {
                name: self.judged(model, guards, prompt, within)
                for name, (prompt, within) in conditions.items()
            }
        for name, frame in (("rates", "to_frame"), ("texts", "texts_frame")):
            tables = [
                getattr(found, frame)().assign(to=code, condition=condition)
                for code, row in rates.items()
                for condition, found in row.items()
            ]
            artifacts.write_text(self.out / f"{name}.csv", pd.concat(tables).to_csv(index=False))
        show_rates(rates)
        losses = ", ".join(f"{code} {guards[code].natural_loss:.2f}" for code in codes)
        say(f"median loss of natural text, nats per token: {losses}")
        say(f"All rates are in {self.out / 'rates.csv'}, the texts in texts.csv.")

    def edit_towards(self, code: str) -> Edit:
        if self.edit == "median":
            folder = self.neurons if self.neurons.is_dir() else self.neurons.parent
            return override(sentence_medians(open_sentence_means(folder), code))
        moments = read_moments(self.neurons)
        if self.edit == "replace":
            return replace(moments, code, self.site)
        change = {"add": add, "difference": difference_of_means}[self.edit]
        return change(moments, code, self.strength, self.site)

    def judged(
        self,
        model: NeuronModel,
        guards: Mapping[str, Guard],
        prompt: str,
        within: AbstractContextManager[None],
    ) -> GeneratedLanguages:
        """Texts written within an edit, and judged without it."""
        return generated_languages(
            model,
            tuple(guards),
            within,
            guards,
            prompts=[prompt],
            n=self.n,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
        )

    @contextmanager
    def edited(
        self, model: NeuronModel, selection: NeuronSelection, code: str, edit: Edit
    ) -> Iterator[None]:
        """The language's neurons changed, those of the others off if that is asked for."""
        if self.edit == "median":
            with intervene(model, selection.units(code), edit, self.where):
                yield
            return
        others = selection.union() & ~selection[code]
        off = intervene(model, others, deactivate, self.where) if self.others_off else nullcontext()
        with off, intervene(model, selection[code], edit, self.where):
            yield


def natural_texts(
    model: NeuronModel, text: str, codes: Sequence[str], n_tokens: int
) -> dict[str, list[str]]:
    """Lines of the text, joined until they have so many tokens: what good output looks like."""
    corpora = read_sentences(text, codes, model, n_shards=1, sentences=2000)
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


def show_rates(rates: Mapping[str, Mapping[str, GeneratedLanguages]]) -> None:
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


@dataclass(frozen=True)
class Bake:
    """Write an edit of neurons into a checkpoint that any Hugging Face program opens.

    interp bake results/demo --language de --out babel-without-german
    """

    neurons: Positional[Path]
    """Folder of a run after `interp find`, or a selection (.json)."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model that the neurons were found in."""

    language: str
    """Whose neurons."""

    out: Path
    """The new folder."""

    edit: Literal["deactivate", "scale", "replace"] = "deactivate"
    """deactivate: they give zero; scale: `strength` times what they gave; replace: their mean
    output in the language, which needs a run with --moments."""

    strength: float = 1.0
    """Factor of --edit scale."""

    def run(self) -> None:
        selection = read_selection(self.neurons)
        chosen = selection[self.language]
        units = chosen if selection.neurons_only else selection.units(self.language)
        if self.edit == "replace":
            edit = replace(read_moments(self.neurons), self.language, "post")
        else:
            edit = deactivate if self.edit == "deactivate" else scale(self.strength)
        model = self.choice.open()
        selection.check_model(model)
        note = f"The neurons are those of {language(self.language).name} in {self.neurons}."
        folder = bake(model, units, edit, self.out, note=note)
        say(f"{int(chosen.sum())} neurons of {self.language}: {edit.name}.")
        say(f"{folder} opens anywhere; its logits equal those of the model with hooks.")
