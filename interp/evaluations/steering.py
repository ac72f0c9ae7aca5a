"""Steering towards a language: neurons, random neurons, a prompt naming it, a residual push."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from interp.evaluations.conditions import (
    Condition,
    conditions_towards,
    in_chat,
    write_conditions,
)
from interp.evaluations.judging import n_judged
from interp.evaluations.languages_written import GeneratedLanguages, Guard, natural_guard
from interp.interventions.edits import Edit
from interp.interventions.residual import ResidualMeans, residual_means
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.results import artifacts, terminal
from interp.results.bars import tqdm
from interp.results.display import MOST_ROWS, Cells, Shown, listed, table_cells
from interp.results.frames import with_origin
from interp.results.words import Bos, Tokens
from interp.runs.folder import begin
from interp.runs.jobs import finish, folder_for, pool_for
from interp.runs.ray import ActorPool, Job, Ray
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora
from interp.text.reading import read_corpora, read_sentences, settings_of_ours
from interp.text.sources import TextSource

_GUARDS = "guards"
"""Folder of the natural text that is judged, beside the pieces of the push."""


@dataclass(frozen=True, kw_only=True)
class SteeringRates(Shown):
    """In which language the model writes under each condition, and how good the texts are.

    >>> written = interp.evaluations.language_rates(["Der Zug hält heute nicht."], ["de"])
    >>> guards = {"de": interp.evaluations.Guard()}
    >>> rates = {"de": {"no edit": written}}
    >>> steered = interp.evaluations.SteeringRates(rates=rates, guards=guards)
    >>> steered.to_frame()[["to", "condition", "language"]].values.tolist()[0]
    ['de', 'no edit', 'de']
    """

    rates: Mapping[str, Mapping[str, GeneratedLanguages]]
    """For each target language, the texts of each condition."""

    guards: Mapping[str, Guard]
    """Guard of each language, which a text must pass to count as good."""

    neurons_of: str = ""
    """The model that the neurons were found in, if it is another (`NeuronSelection.on`)."""

    def __repr__(self) -> str:
        conditions = dict.fromkeys(name for part in self.rates.values() for name in part)
        return f"SteeringRates(towards {listed(self.rates)}; {listed(conditions)})"

    def _cells(self) -> Cells:
        frame: Any = self.to_frame()
        rates = [f"{name}{end}" for name in ("rate", "good") for end in ("", "_low", "_high")]
        own = frame.loc[frame["language"] == frame["to"], ["to", "condition", "texts", *rates]]
        return table_cells(own, "texts in the language steered to, with 95 % intervals", MOST_ROWS)

    def to_frame(self) -> pd.DataFrame:
        """One row per detected language, condition and target language."""
        return self._joined(lambda texts: texts.to_frame())

    def texts_frame(self) -> pd.DataFrame:
        """One row per text."""
        return self._joined(lambda texts: texts.texts_frame())

    def _joined(self, frame: Any) -> pd.DataFrame:
        joined = pd.concat(
            frame(texts).assign(to=to, condition=name)
            for to, conditions in self.rates.items()
            for name, texts in conditions.items()
        )
        return with_origin(joined, self.neurons_of)

    def examples(self, n: int = 3, width: int = 100) -> str:
        """For a terminal: the first `n` texts of every condition, each in one line.

        Texts that are the same towards every label, those of no edit, are shown once.

        >>> written = interp.evaluations.language_rates(["Der Zug hält heute nicht."], ["de"])
        >>> shown = {"rates": {"de": {"no edit": written}}, "guards": {}}
        >>> print(interp.evaluations.SteeringRates(**shown).examples())
        to de, no edit:
          de Der Zug hält heute nicht.
        """
        lines, shown = [], set()
        for to, conditions in self.rates.items():
            for name, written in conditions.items():
                if id(written) in shown:
                    continue
                shown.add(id(written))
                once = len(self.rates) > 1 and all(
                    row.get(name) is written for row in self.rates.values()
                )
                lines.append(f"{name}:" if once else f"to {to}, {name}:")
                first = zip(written.found[:n], written.texts[:n], strict=True)
                lines += [f"  {terminal.cut(f'{code} {text}', width - 2)}" for code, text in first]
        return "\n".join(lines)

    def table(self, width: int = 100) -> str:
        """For a terminal of `width` columns: share of good texts in the language, of all in it, and
        median loss."""
        by_length = sorted(self.rates.values(), key=len, reverse=True)
        names = list(dict.fromkeys(name for row in by_length for name in row))
        rows = [["to", *names]]
        for code, row in self.rates.items():
            cells = []
            for name in names:
                if (texts := row.get(name)) is None:
                    cells.append("")
                    continue
                good, rate = texts.good(code).value, texts.rate(code).value
                median = float(texts.loss.nanquantile(0.5))
                share = "-" if code in texts.unchecked else f"{good:.2f} ({rate:.2f})"
                cells.append(f"{share} {median:5.2f}")
            rows.append([code, *cells])
        unknown = [
            code
            for code, row in self.rates.items()
            if any(code in texts.unchecked for texts in row.values())
        ]
        nameless = [code for code, row in self.rates.items() if len(row) < len(names)]
        losses = ", ".join(f"{code} {self.guards[code].natural_loss:.2f}" for code in self.rates)
        return "\n".join(
            [
                "Share of texts in the language and good (good or not), median nats per token:\n",
                *terminal.table(rows, width),
                *[f"empty: {listed(nameless)}, no language, cannot be named in a prompt"]
                * bool(nameless),
                *[f"-: not checked, the detector does not know {listed(unknown)}"] * bool(unknown),
                f"median loss of natural text, nats per token: {losses}",
            ]
        )


def steer_towards(
    model: AnyModel,
    edits: Mapping[str, Edit],
    selection: NeuronSelection,
    controls: Mapping[str, NeuronSelection],
    text: TextSource,
    *,
    layer: int | None = None,
    strength: float = 1.0,
    tokens: Tokens = "all",
    others_off: bool = False,
    prompt: str = "",
    chat: bool = False,
    n: int = 50,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    bos: Bos = "auto",
    natural: int = 2000,
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> SteeringRates:
    """Steer towards every language that has an edit, and compare with the baselines.

    `controls` are other selections by the name of their condition, such as random neurons, as many
    per layer, and neurons that fire as often. `text` is natural text in the languages of the
    selection: `natural` lines of each language steered to for its guard, and some of every language
    for the push of the residual stream at `layer` (None: the middle). See `conditions_towards`.
    With `chat`, the prompt and what names the language are a user's message in the model's chat
    template. With `out`, everything is saved there batch by batch, and the same call resumes.

    >>> towards = {"de": interp.difference_of_means(moments, "de")}
    >>> pair = neurons.languages_only(["en", "de"])
    >>> text = {
    ...     "en": [f"In {year} the first train went to Vienna." for year in range(1800, 1900)],
    ...     "de": [f"Im Jahr {year} fuhr der erste Zug nach Wien." for year in range(1800, 1900)],
    ... }
    >>> controls = {"random neurons": pair.random_like(generator)}
    >>> settings = {"n": 1, "max_new_tokens": 12, "progress": False}
    >>> steered = interp.evaluations.steer_towards(
    ...     model, towards, pair, controls, text, **settings
    ... )
    >>> list(steered.rates["de"])
    ['no edit', 'neurons', 'random neurons', 'named in prompt', 'residual stream']
    """
    model = as_model(model)
    texts = natural_texts(model, text, tuple(edits), max_new_tokens, natural)
    corpora = text_for_push(model, text, selection.languages, bos, progress)
    with pool_for(model, ray) as pool:
        guards, residual = measure_natural(
            model,
            texts,
            corpora,
            max_tokens=max_new_tokens,
            bos=bos,
            out=None if out is None else Path(out) / "natural",
            progress=progress,
            ray=pool,
        )
        conditions = conditions_towards(
            edits,
            selection,
            controls,
            residual,
            layer=layer,
            strength=strength,
            tokens=tokens,
            others_off=others_off,
            prompts=(prompt,),
        )
        rates = steering_rates(
            model,
            in_chat(model, conditions) if chat else conditions,
            guards,
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            bos="none" if chat else bos,
            out=out,
            progress=progress,
            ray=pool,
        )
    return replace(rates, neurons_of=selection.neurons_of)


def text_for_push(
    model: NeuronModel, text: TextSource, languages: Sequence[str], bos: Bos, progress: bool = True
) -> Corpora:
    """Running text whose means the push of the residual stream is made of."""
    settings: dict[str, Any] = {"block_length": min(64, model.max_length), "n_shards": 2}
    settings |= {"tokens": 20_000, "bos": bos, "progress": progress}
    with settings_of_ours():
        return read_corpora(text, languages, model, **settings)


def natural_texts(
    model: NeuronModel,
    text: TextSource,
    languages: Sequence[str],
    n_tokens: int,
    n_lines: int = 2000,
) -> dict[str, list[str]]:
    """Natural texts of `n_tokens` tokens, joined from lines: what good output looks like."""
    corpora = read_sentences(text, languages, model, n_shards=1, sentences=n_lines, bos="none")
    texts = {}
    for code in languages:
        rows, pieces, current = corpora.rows[code], [], []
        for ids, length in zip(rows.ids, rows.length.tolist(), strict=True):
            current += [*ids[:length].tolist(), *model.encode("\n")]
            if len(current) >= n_tokens:
                pieces.append(model.decode(current[:n_tokens]))
                current = []
        texts[code] = pieces
    return texts


def measure_natural(
    model: NeuronModel,
    natural: Mapping[str, Sequence[str]],
    corpora: Corpora,
    *,
    max_tokens: int = 64,
    bos: Bos = "auto",
    out: Path | str | None = None,
    progress: bool = True,
    ray: Ray | ActorPool | None = None,
) -> tuple[dict[str, Guard], ResidualMeans]:
    """Guards and means of the residual stream, measured on natural text in each language.

    With `out`, both are saved there batch by batch, and the same call resumes or loads them.
    """
    if out is not None:
        plan = {"model": model.identity, "corpora": corpora.fingerprint}
        plan |= {"natural text": artifacts.hash_of(dict(natural)), "max_tokens": max_tokens}
        plan["bos"] = bos
        begin(Path(out), plan, artifacts.provenance())
    with folder_for(out) as folder, pool_for(model, ray) as pool:
        guards = natural_guard(
            model,
            natural,
            max_tokens=max_tokens,
            bos=bos,
            out=folder / _GUARDS,
            progress=progress,
            ray=pool,
        )
        jobs = []
        for code, rows in corpora.rows.items():
            path = _residual_piece(folder, code)
            work = partial(_measure_residual, corpora.languages_only([code]), path)
            jobs.append(Job(f"residual stream of {code}", path, work, int(rows.length.sum())))
        load = partial(artifacts.load, kind="NaturalPiece")
        with tqdm(
            total=sum(job.size for job in jobs),
            unit=" tokens",
            unit_scale=True,
            desc="reading for the push",
            disable=not progress or None,
        ) as progress_bar:
            pieces = finish(jobs, load, progress_bar, model, pool)
    mean = torch.cat([piece.tensors["mean"] for piece in pieces])
    return guards, ResidualMeans(mean=mean, languages=corpora.languages)


def tokens_left(
    natural: Mapping[str, Sequence[str]], corpora: Corpora, max_tokens: int, out: Path
) -> int:
    """Tokens that `measure_natural` has still to read: what its folder holds is done."""
    left = 0
    for code, texts in natural.items():
        n_texts = 2 * len(texts) - n_judged(out / _GUARDS / code)  # as they are, and shuffled
        left += max_tokens * max(0, n_texts)
    for code, tokens in corpora.tokens().items():
        left += 0 if _residual_piece(out, code).exists() else tokens
    return left


def _residual_piece(out: Path, code: str) -> Path:
    return out / "pieces" / f"residual-{code}.safetensors"


def steering_rates(
    model: NeuronModel,
    conditions: Sequence[Condition],
    guards: Mapping[str, Guard],
    **settings: Any,
) -> SteeringRates:
    """Texts under every condition, by target; `settings` are those of `write_conditions`."""
    texts = write_conditions(model, conditions, guards, **settings)
    targets = dict.fromkeys(condition.to for condition in conditions if condition.to)
    rates = {
        to: {
            condition.name: written
            for condition, written in zip(conditions, texts, strict=True)
            if condition.to in ("", to)
        }
        for to in targets
    }
    return SteeringRates(rates=rates, guards=guards)


def _measure_residual(corpora: Corpora, path: Path, model: NeuronModel) -> None:
    mean = residual_means(model, corpora, progress=False).mean
    artifacts.save(path, "NaturalPiece", {"mean": mean}, {}, {})
