"""Ways to make a model write in a language, and the texts written under each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from interp.evaluations.languages_written import GeneratedLanguages, Guard, generated_languages
from interp.evaluations.writing import bar
from interp.interventions.edits import Change, Edit, deactivate
from interp.interventions.residual import ResidualMeans
from interp.interventions.under import Changes, check_under, listed_changes, plan_of
from interp.models.any_model import AnyModel
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts
from interp.results.words import NOTHING, Bos, Tokens
from interp.runs.folder import begin
from interp.runs.jobs import finish, folder_for
from interp.runs.ray import ActorPool, Job, Ray
from interp.selections.neuron_selection import NeuronSelection
from interp.text.chat import chat_text
from interp.text.languages import OPENINGS, given_tags, language_of, naming_prompt

Naming = Callable[[str, str], str | None]
"""A prompt and a label → the prompt with the label's language named; None: it has no name."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One way to make the model write in a language."""

    to: str
    """Target language; empty: a baseline for every language."""

    name: str
    """Such as "neurons", "random neurons", "named in prompt"."""

    changes: Changes = None
    """What is changed while the model writes."""

    prompts: tuple[str, ...] = ("",)
    """What the texts continue, each as often as the others."""

    @property
    def plan(self) -> dict[str, Any]:
        """Everything the condition depends on, ready for JSON."""
        (changes,) = plan_of({self.name: listed_changes(self.changes)}).values()
        prompts = list(self.prompts)
        return {"to": self.to, "name": self.name, "prompts": prompts, "changes": changes}


def in_chat(model: AnyModel, conditions: Sequence[Condition]) -> list[Condition]:
    """The same, with every prompt as a user's message in the model's chat template."""
    return [
        replace(one, prompts=tuple(chat_text(model, prompt) for prompt in one.prompts))
        for one in conditions
    ]


def announced(prompt: str, label: str) -> str | None:
    """The prompt after a line that announces text in the language, in that language if known."""
    language = language_of(label)
    if language is None:
        return None
    return naming_prompt(label, words="own" if language.code in OPENINGS else "english") + prompt


def conditions_towards(
    edits: Mapping[str, Edit],
    selection: NeuronSelection,
    controls: Mapping[str, NeuronSelection],
    residual: ResidualMeans,
    *,
    layer: int | None = None,
    strength: float = 1.0,
    tokens: Tokens = "all",
    others_off: bool = False,
    prompts: tuple[str, ...] = ("",),
    naming: Naming = announced,
) -> list[Condition]:
    """For each language with an edit: its neurons, controls, its name, a residual push at `layer`
    (None: the middle).

    Labels that are no languages have no name that a prompt could give.

    The untouched model comes first. With `others_off`, neurons of other languages output zero,
    unless they are the target's too.
    """

    def changes(chosen: NeuronSelection, code: str) -> list[Change]:
        change = chosen.change(code, edits[code], tokens)
        others = chosen.union() & ~chosen[code]
        return [Change(others, deactivate, tokens), change] if others_off else [change]

    layer = residual.mean.shape[1] // 2 if layer is None else layer
    conditions = [Condition(to="", name="no edit", prompts=prompts)]
    for code in edits:
        units, push = residual.towards(code, layer, strength)
        edited: dict[str, Changes] = {"neurons": changes(selection, code)}
        edited |= {name: changes(neurons, code) for name, neurons in controls.items()}
        conditions += [
            Condition(to=code, name=name, changes=made, prompts=prompts)
            for name, made in edited.items()
        ]
        named = [with_name for one in prompts if (with_name := naming(one, code)) is not None]
        if named:
            conditions.append(Condition(to=code, name="named in prompt", prompts=tuple(named)))
        pushed = Change(units, push, tokens)
        conditions.append(
            Condition(to=code, name="residual stream", changes=pushed, prompts=prompts)
        )
    return conditions


def write_conditions(
    model: NeuronModel,
    conditions: Sequence[Condition],
    guards: Mapping[str, Guard],
    *,
    n: int = 50,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    bos: Bos = "auto",
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> list[GeneratedLanguages]:
    """For each condition, `n` texts per prompt, with the same seeds, judged by the guards.

    With `out`, every condition is saved there as soon as it is done, and the same call resumes;
    with `ray`, actors write, on nodes that share `out`.
    """
    check_under(
        model, {f"{condition.to} {condition.name}": condition.changes for condition in conditions}
    )
    settings = {"n": n, "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    settings |= {"bos": bos}
    tags = given_tags(guards)  # sent along, for actors are in no block
    if out is not None:
        plan = {"model": model.identity, "texts": settings}
        plan["guards"] = {code: list(astuple(guard)) for code, guard in guards.items()}
        plan["conditions"] = [condition.plan for condition in conditions]
        plan |= {"tags": tags} if tags else {}
        begin(Path(out), plan, artifacts.provenance())
    jobs = []
    with folder_for(out) as folder, bar(len(conditions), "writing", progress) as progress_bar:
        for number, condition in enumerate(conditions):
            path = folder / "pieces" / f"{number:04d}.safetensors"
            work = partial(_write_and_judge, guards, condition, settings | {"tags": tags}, path)
            name = f"{condition.to} {condition.name}".strip()
            jobs.append(Job(name, path, work))
        return finish(jobs, GeneratedLanguages.load, progress_bar, model, ray)


def _write_and_judge(
    guards: Mapping[str, Guard],
    condition: Condition,
    settings: Mapping[str, Any],
    path: Path,
    model: NeuronModel,
) -> None:
    """Save the texts of one condition, written under its changes and judged without them."""
    written = generated_languages(
        model,
        tuple(guards),
        {NOTHING: condition.changes},
        guards,
        prompts=condition.prompts,
        progress=False,
        **settings,
    )
    written[NOTHING].save(path)
