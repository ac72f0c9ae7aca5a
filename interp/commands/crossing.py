"""The subcommands that ask when a prompt becomes its answer: activation patching, logit lens."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import interp
from interp.commands.common import (
    ModelChoice,
    check_neurons,
    goes_ahead,
    open_model,
    save_table,
    say,
    say_how_text_begins,
    say_table,
    seeded,
)
from interp.commands.effects import read_selection
from interp.commands.forecasts import of_lens, of_patching
from interp.commands.options import Labels, Positional
from interp.commands.remembered import Memory, memory_of
from interp.results.words import Alike, Bos, Layers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Patch:
    """Patch activations of one prompt into another, layer by layer.

    It shows how probable each answer becomes. --at says which tokens to patch, or --texts: those
    of one text in each prompt.

        interp patch "Der Tag nach Montag ist" "The day after Thursday is" \\
            --answers " Friday" " Tuesday" " Dienstag"
        interp patch "Der Tag nach Montag ist" "The day after Thursday is" \\
            --answers " Friday" " Tuesday" --texts Montag Thursday --layers from
    """

    source: Positional[str]
    """The prompt whose activations are taken."""

    target: Positional[str]
    """The prompt that they are patched into."""

    choice: ModelChoice
    """The model, or a run of it; heads and attn_out need --attention hooked."""

    answers: tuple[str, ...]
    """Possible next words, with their leading spaces.

    Only the first token of each counts."""

    part: Literal["resid_post", "resid_pre", "mlp_out", "attn_out", "heads", "neurons"] = (
        "resid_post"
    )
    """resid_post, resid_pre: the residual stream after or before a layer; mlp_out, attn_out: the
    output of the MLP or of attention; heads: each head; neurons: those of --language in --neurons,
    and as many random ones."""

    layers: Layers = "each"
    """each: one layer; from: it and all later ones; all."""

    at: Alike = "last"
    """last token; tokens, words: each, matched by position; all tokens together."""

    texts: tuple[str, str] | None = None
    """A text in the source and one in the target."""

    neurons: Path | None = None
    """For --part neurons: a run, or a selection (.json).

    By default those of the run that MODEL names."""

    language: str | None = None
    """For --part neurons: the language they belong to."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's.

    It is what begins a prompt."""

    control: str | None = None
    """Another prompt to patch from, as a control; not with --texts.

    It must be aligned with the target as --at says."""

    noise: bool = False
    """Also move the target as far in a random direction."""

    seed: int = 0
    """Seeds random directions and random neurons."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    out: Path | None = None
    """File for the result (.safetensors), with a table (.csv) next to it."""

    def run(self) -> "interp.prompts.PatchingResult | None":
        memory = self.choice.memory
        neurons = self.neurons or memory.source
        if self.part == "neurons" and (neurons is None or self.language is None):
            raise ValueError(
                "--part neurons needs --neurons and --language: say whose neurons to patch."
            )
        if len(set(self.answers)) < len(self.answers):
            raise ValueError(f"--answers are {', '.join(map(repr, self.answers))}: each only once.")
        if self.texts is not None and self.control is not None:
            raise ValueError(
                "--control and --texts exclude each other: a control is aligned by --at. Leave "
                "one out."
            )
        if self.part == "neurons":
            assert neurons is not None
            read_selection(neurons)  # refuses what is none before a model is opened
            memory = memory if memory.source is not None else memory_of(neurons)
        bos = memory.take_bos(self.bos)
        model, _ = open_model(self.choice, memory)
        return self.patch(model, neurons, bos)

    def patch(
        self, model: "interp.NeuronModel", neurons: Path | None, bos: Bos
    ) -> "interp.prompts.PatchingResult | None":
        """Patch, print the result and save it."""
        from interp.prompts.alignment import align_prompts, joined
        from interp.prompts.targets import target_ids
        from interp.text.tokens import prompt_ids

        parts = self.parts(model, neurons)
        answers = {text: target_ids(model, self.target, text)[0] for text in self.answers}
        random = self.noise or self.part == "neurons"
        texts = () if self.texts is None else (self.texts[0],)
        source = interp.prompts.PatchSource(self.source, texts)
        at = self.at if self.texts is None else (self.texts[1],)
        spans = align_prompts(model, source, self.target, at, bos)
        n_parts = {"heads": len(parts), "neurons": 2}.get(self.part, 1)  # these and random ones
        n_sources = 1 + (self.control is not None) + random
        measure = partial(
            of_patching,
            model,
            prompt_ids(model, self.target, bos),
            [span.target[0] for span in spans],
            n_parts * n_sources,
            self.layers,
        )
        if not goes_ahead(measure, "--at last, or --layers all.", self.dry_run):
            return None
        result = interp.patch(
            model,
            source,
            self.target,
            answers,
            parts,
            self.layers,
            at,
            {} if self.control is None else {"control": self.control},
            seeded(self.seed) if random else None,
            bos=bos,
        )
        for name, text in (("source", self.source), ("target", self.target)):
            say(f"{name}  {joined(model, prompt_ids(model, text, bos))}")
        say_how_text_begins(model, bos)
        say("")
        show_patching(result)
        if self.out is not None:
            settings = {"source": self.source, "target": self.target, "part": self.part, "bos": bos}
            save_result(result, self.out, model=model.fingerprint, **settings)
        return result

    def parts(self, model: "interp.NeuronModel", neurons: Path | None) -> Any:
        """The `parts` of `interp.patch`."""
        if self.part == "heads":
            return interp.prompts.heads(model)
        if self.part != "neurons":
            return self.part
        assert neurons is not None
        assert self.language is not None
        selection = check_neurons(read_selection(neurons), neurons, model)
        return {f"neurons of {self.language}": selection.units(self.language)}


def show_patching(result: "interp.prompts.PatchingResult") -> None:
    """Print the answers' probabilities, a row per patch; spans are numbered, as some repeat."""
    later = " and later" if result.extent == "from" else ""
    where = ["all layers" if result.extent == "all" else f"layer {n}{later}" for n in result.layers]
    numbers = [f"{n} " for n in range(len(result.spans))] if len(result.spans) > 1 else [""]
    spans = [f"{number}{span!r}" for number, span in zip(numbers, result.spans, strict=True)]
    axes = [result.sources, result.parts, where, spans]
    named = [axis for axis, names in enumerate(axes) if len(names) > 1] or [2]
    fixed = ", ".join(axes[axis][0] for axis in (1, 2, 3) if axis not in named)
    patched = f" Patched: {fixed}." if fixed else ""
    say(f"Probability of each answer as the next token.{patched}\n")
    rows = [[""] * len(named) + [repr(answer) for answer in result.answers]]
    lines = [(["target, unpatched"], result.unpatched), (["source, unpatched"], result.own[0])]
    for place in itertools.product(*map(range, map(len, axes))):
        cells = [axes[axis][place[axis]] for axis in named]
        lines.append((cells, result.log_probability[place]))
    for cells, values in lines:
        cells = [*cells, *[""] * (len(named) - len(cells))]
        rows.append(cells + [f"{value:.4f}" for value in values.exp().tolist()])
    say_table(rows, stay=len(named))


@dataclass(frozen=True)
class Lens:
    """Show which language each layer predicts (logit lens).

    It looks in every layer for the answers to Babel's facts, or to your own prompts.

        interp lens --languages ja en
    """

    choice: ModelChoice
    """The model, or a run of it."""

    prompts: str | None = None
    """A folder of <language>.jsonl with prompts, options and answers; for Babel by default its
    facts."""

    languages: Labels = ()
    """First the language of the prompts, then others that layers may predict; by default the
    second and first of the run, or of the prompts.

    Two are best, because a fact is left out if its answers in two languages begin alike."""

    bos: Bos | None = None
    """auto, none, document, block; by default the run's.

    It is what begins a prompt."""

    limit: int | None = None
    """Read only the first N prompts; by default all."""

    dry_run: bool = False
    """Say how long it would take, from a trial, and stop."""

    out: Path | None = None
    """File for the result (.safetensors), with a table (.csv) next to it."""

    def run(self) -> "interp.prompts.Lens | None":
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}: read 1 prompt or more, or leave it out.")
        memory = self.choice.memory
        prompts = self.prompts_for(self.choice.of(memory).model)
        languages = self.languages or two_of(prompts, memory)
        bos = memory.take_bos(self.bos)
        model, _ = open_model(self.choice, memory)
        tasks = interp.text.align_tasks(
            [interp.read_task(prompts, code) for code in languages], "drop"
        )
        questions = []
        for items in list(zip(*(task.items for task in tasks), strict=True))[: self.limit]:
            words = [item.options[item.answer].strip(" .。」") for item in items]
            answers = dict(zip(languages, words, strict=True))
            questions.append(interp.prompts.Question(items[0].prompt, answers))
        measure = partial(of_lens, model, questions, bos)
        if not goes_ahead(measure, "a smaller --limit.", self.dry_run):
            return None
        result = interp.logit_lens(model, questions, bos=bos)
        left_out = {"begin alike": result.alike, "have no token": result.unspelled}
        say_how_text_begins(model, bos)
        show_lens(result, {reason: len(numbers) for reason, numbers in left_out.items()})
        if self.out is not None:
            settings = {"prompts": prompts, "bos": bos}
            save_result(result, self.out, model=model.fingerprint, **settings)
        return result

    def prompts_for(self, model: str | None) -> str:
        """The prompts that are given, or Babel's facts for Babel."""
        if self.prompts is None and model != "babel":
            raise ValueError(
                "No prompts are given: name a folder of <language>.jsonl with --prompts, or "
                "--prompts babel/fact_completion."
            )
        return self.prompts or "babel/fact_completion"


def two_of(prompts: str, memory: Memory) -> tuple[str, ...]:
    """The second and the first language that the prompts, and the run if there is one, have."""
    known = interp.text.labels_in(prompts)
    languages = [code for code in memory.recorded.get("languages", known) if code in known]
    if len(languages) < 2:
        raise ValueError(
            f"{prompts} is in {' '.join(known) or 'no language'}, and two that the run has too are "
            "needed: name them with --languages."
        )
    pair = (languages[1], languages[0])
    if "languages" in memory.recorded:
        memory.taken["languages"] = pair
    return pair


def show_lens(result: "interp.prompts.Lens", left_out: Mapping[str, int]) -> None:
    """Print each language's answer probability by layer, ± half the width of its 95 % interval."""
    say(f"Mean probability that each layer gives the answer, over {len(result.kept)} prompts")
    reasons = ", ".join(f"{n} whose answers {reason}" for reason, n in left_out.items())
    say(f"(left out: {reasons})\n")
    rows = [["layer", *result.languages, "entropy (nats)"]]
    several = len(result.kept) > 1
    mean = result.mean() if several else None
    for layer in range(result.probability.shape[1]):
        cells = []
        for column in range(len(result.languages)):
            value = result.probability[:, layer, column].mean().item()
            margin = "" if mean is None else f" ±{_margin(mean.low, mean.high, layer, column):6.3f}"
            cells.append(f"{value:.3f}{margin}")
        rows.append([str(layer), *cells, f"{result.entropy[:, layer].mean().item():.2f}"])
    say_table(rows)


def save_result(
    result: "interp.prompts.PatchingResult | interp.prompts.Lens", out: Path, **settings: Any
) -> None:
    """Save a result with its provenance, and its table (.csv) next to it."""
    result.save(out, interp.results.artifacts.provenance(**settings))
    table = out.with_suffix(".csv")
    save_table(result.to_frame(), table)
    say(f"\nThe result is in {out}, its table in {table}.")


def _margin(low: "torch.Tensor", high: "torch.Tensor", layer: int, column: int) -> float:
    return (high - low)[layer, column].item() / 2
