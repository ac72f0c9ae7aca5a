"""The neuron page: what selected neurons fire on, language beside language, in one HTML file.

The page needs no network and asks for none: text, style and program are in the file, and its
content policy forbids everything else. Text of a corpus is not to be trusted; it travels as
compressed data and becomes text nodes, never markup.
"""

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.counting.top_contexts import TopContexts, gates_around
from interp.inference.intervals import jackknife
from interp.models.neuron_model import NeuronModel
from interp.prompts.lens import read_out, token_bytes
from interp.reports.page_contexts import contexts_of, token_text
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.display import counted
from interp.scores.lape import language_entropy
from interp.selections.neuron_selection import NeuronSelection
from interp.text.languages import language

ONE_FILE = 2000
"""Neurons that one file may hold; with more, a page is a folder with a file for each layer."""

_HERE = Path(__file__).parent
_RIGHT_TO_LEFT = ("Arabic", "Hebrew")  # scripts
_ROWS = 128  # neurons whose output is read at a time; each takes two rows of logits


@dataclass(frozen=True, eq=False)
class NeuronPage:
    """A page that is finished but for its place: save it, or show it in a notebook.

    >>> run = interp.collect(model, text, keep=interp.Keep(contexts=2), progress=False)
    >>> chosen = {"LAPE": neurons}
    >>> page = interp.neuron_page(model, run.firing, chosen, run.contexts, progress=False)
    >>> page.title, page.save(folder / "page.html").name
    ('Neurons of babel', 'page.html')
    """

    title: str
    """In the browser's tab."""

    index: dict[str, Any]
    """What is there: languages, selections, and the rates of every neuron; JSON."""

    layers: dict[int, dict[str, Any]]
    """Contexts and promoted tokens of each layer that has neurons here; JSON."""

    def __repr__(self) -> str:
        layers = counted(len(self.layers), "layer")
        return f"NeuronPage({self.title!r}: {counted(self.n_neurons, 'neuron')} in {layers})"

    @property
    def n_neurons(self) -> int:
        return len(self.index["neurons"])

    def html(self) -> str:
        """The page as one file."""
        data = [_data("index", self.index)]
        data += [_data(f"layer-{layer}", each) for layer, each in self.layers.items()]
        return _document(self.title, "".join(data), folder=False)

    def save(self, path: Path | str) -> Path:
        """Write the page, and return the file to open.

        Up to 2000 neurons that is `path`. With more, it is index.html in the folder of that name
        without its ending, beside one file for each layer, which is read when it is looked at.
        """
        path = Path(path)
        if self.n_neurons <= ONE_FILE:
            artifacts.write_text(path, self.html())
            return path
        folder = path.with_suffix("")
        for layer, each in self.layers.items():
            # A page that was opened from a disk may not fetch, but it may run a program beside it.
            program = f'neuronLayer({layer},"{_packed(each)}");\n'
            artifacts.write_text(folder / f"layer-{layer}.js", program)
        text = _document(self.title, _data("index", self.index), folder=True)
        artifacts.write_text(folder / "index.html", text)
        return folder / "index.html"

    def _repr_html_(self) -> str:
        if self.n_neurons > ONE_FILE:
            return (
                f"<p>{self.n_neurons:,} neurons are too many for a notebook: open what "
                "<code>page.save(path)</code> writes.</p>"
            )
        # In a frame of its own, so that neither the notebook nor the page changes the other; in
        # ASCII, or the program would have another hash where somebody takes UTF-8 for Latin-1.
        escaped = html.escape(self.html()).encode("ascii", "xmlcharrefreplace").decode()
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{escaped}" '
            'style="width:100%;height:46rem;border:1px solid #8884;border-radius:6px"></iframe>'
        )


def neuron_page(
    model: NeuronModel,
    stats: FiringStats,
    selections: Mapping[str, NeuronSelection],
    contexts: TopContexts,
    *,
    scores: Mapping[str, Float[Tensor, "layer neuron"]] | None = None,
    effects: pd.DataFrame | None = None,
    before: int = 24,
    after: int = 12,
    n_tokens: int = 12,
    progress: bool = True,
) -> NeuronPage:
    """A page with every neuron of the selections, which are given by name.

    Each neuron has its firing rates with 95 % intervals over shards; the selections that it is in;
    the entropy of its firing and the `scores` given; its strongest contexts in each language, from
    `before` tokens before to `after` tokens behind, shaded by the gate; and the `n_tokens` tokens
    that its output vector makes likelier and less likely by the direct way to the logits.
    `effects` says what happens when a neuron is off: columns layer, neuron, language and value, the
    rise of the loss in nats per token, and low and high if there is an interval.

    Costs a forward pass of the rows that contexts of these neurons are in.

    >>> run = interp.collect(model, text, keep=interp.Keep(contexts=2), progress=False)
    >>> chosen = {"LAPE": neurons}
    >>> page = interp.neuron_page(model, run.firing, chosen, run.contexts, progress=False)
    >>> page.n_neurons == neurons.union().sum().item()
    True
    """
    if before < 0 or after < 0:
        raise ValueError(
            f"Tokens shown before and behind are {before} and {after}: give 0 or more."
        )
    longest = contexts.ids.shape[1]
    before, after = min(before, longest), min(after, longest)
    chosen, selections = _chosen(model, stats, selections, contexts)
    scores = {"entropy (nats)": language_entropy(stats.rate), **(scores or {})}
    place = chosen.nonzero()
    index = {
        "title": f"Neurons of {_name(model)}",
        "gated": model.gated,
        "layers": model.n_layers,
        "width": model.d_mlp,
        "shards": stats.n_shards,
        "languages": [
            _language(code, tokens)
            for code, tokens in zip(stats.languages, stats.tokens.sum(0).tolist(), strict=True)
        ],
        "selections": list(selections),
        "scores": list(scores),
        "window": [before, after],
        "neurons": _neurons(stats, selections, scores, place),
        "effects": None if effects is None else _effects(effects, stats.languages, place),
    }
    layers = _layers(model, contexts, chosen, before, after, n_tokens, progress)
    return NeuronPage(index["title"], index, layers)


def promoted_tokens(
    model: NeuronModel, layer: int, neurons: Int64[Tensor, " neuron"], n_tokens: int
) -> tuple[Int64[Tensor, "neuron token"], Int64[Tensor, "neuron token"]]:
    """Tokens that each neuron's output vector makes likelier, and those it makes less likely.

    The vector, as long as a state, is read out alone, less its opposite; strongest first. That is
    the direct way to the logits, for an output above zero: one below zero swaps the two. What later
    layers make of it is not seen.
    """
    weight = model.w_out(layer).detach()
    up, down = [], []
    for some in neurons.split(_ROWS):
        write = weight[some.to(weight.device)].float()
        state = write * (model.d_model**0.5 / write.norm(dim=-1, keepdim=True).clamp_min(1e-12))
        logits = (read_out(model, state) - read_out(model, -state)).float()
        n = min(n_tokens, logits.shape[1])
        up.append(logits.topk(n).indices.cpu())
        down.append((-logits).topk(n).indices.cpu())
    return torch.cat(up), torch.cat(down)


# ---------------------------------------------------------------- what is known of each neuron


def _chosen(
    model: NeuronModel,
    stats: FiringStats,
    selections: Mapping[str, NeuronSelection],
    contexts: TopContexts,
) -> tuple[Bool[Tensor, "layer neuron"], dict[str, NeuronSelection]]:
    """The neurons that any selection holds; refused where the parts are not of one model."""
    selections = {name: each.neurons() for name, each in selections.items()}
    shape = (len(stats.languages), model.n_layers, model.d_mlp)
    for what, found, codes in (
        ("counts", (len(stats.languages), stats.n_layers, stats.d_mlp), stats.languages),
        ("contexts", tuple(contexts.gate.shape[:3]), contexts.languages),
    ):
        if found != shape or codes != stats.languages:
            raise ValueError(
                f"The {what} are of {found[1]} layers of {found[2]} neurons in {', '.join(codes)}; "
                f"{model.name} has {model.n_layers} of {model.d_mlp}, and the counts are in "
                f"{', '.join(stats.languages)}: give those of one run with this model."
            )
    chosen = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    for name, each in selections.items():
        each.check_model(model)
        if strange := [code for code in each.languages if code not in stats.languages]:
            raise ValueError(
                f"{name} has neurons of {', '.join(strange)}, and the counts are in "
                f"{', '.join(stats.languages)}: leave them out with .restrict."
            )
        chosen |= each.union()
    if not chosen.any():
        raise ValueError(
            f"The selections ({', '.join(selections) or 'none'}) hold no neuron: give others."
        )
    return chosen, selections


def _neurons(
    stats: FiringStats,
    selections: Mapping[str, NeuronSelection],
    scores: Mapping[str, Tensor],
    place: Int64[Tensor, "chosen 2"],
) -> list[list[Any]]:
    """For each: layer, number, rates with low and high ends, scores, and (selection, language)s."""
    layer, neuron = place.unbind(1)
    alone = stats.at(layer, neuron)
    if stats.n_shards > 1:
        found = jackknife(alone, lambda part: part.rate)
        ends = [found.value, found.low.clamp_min(0), found.high.clamp_max(1)]
    else:
        ends = [alone.rate, torch.full_like(alone.rate, torch.nan)] * 2
        ends = [ends[0], ends[1], ends[1]]
    rates = [_rounded(rearrange(each, "language 1 n -> n language")) for each in ends]
    valued = _rounded(torch.stack([each[layer, neuron].double() for each in scores.values()], 1))
    members: list[list[list[int]]] = [[] for _ in range(len(place))]
    for number, each in enumerate(selections.values()):
        for row, n in each.mask[:, layer, neuron].nonzero().tolist():
            members[n].append([number, stats.languages.index(each.languages[row])])
    return [
        [*where, *each]
        for where, *each in zip(place.tolist(), *rates, valued, members, strict=True)
    ]


def _effects(
    effects: pd.DataFrame, languages: Sequence[str], place: Int64[Tensor, "chosen 2"]
) -> list[list[list[float | None] | None] | None]:
    """For each neuron and language, value and the ends of its interval; None: not measured."""
    needed = ["layer", "neuron", "language", "value"]
    if missing := [name for name in needed if name not in effects.columns]:
        raise ValueError(
            f"The effects have no column {', '.join(missing)}: give {', '.join(needed)}, and low "
            "and high if there is an interval."
        )
    measured: dict[tuple[int, int], list[list[float | None] | None]] = {}
    for row in effects.to_dict("records"):
        if row["language"] in languages:
            here = measured.setdefault(
                (int(row["layer"]), int(row["neuron"])), [None] * len(languages)
            )
            numbers = [float(row.get(name, np.nan)) for name in ("value", "low", "high")]
            here[languages.index(row["language"])] = _finite(numbers)
    return [measured.get((layer, neuron)) for layer, neuron in place.tolist()]


def _language(code: str, tokens: int) -> dict[str, Any]:
    known = language(code)
    names = {"name": known.name, "endonym": known.endonym, "color": known.color}
    # Not left to the first letter: a context may begin with a foreign name.
    direction = "rtl" if known.script in _RIGHT_TO_LEFT else "ltr"
    return {"code": code, "tokens": tokens, "direction": direction, **names}


def _name(model: NeuronModel) -> str:
    """The model's name, without the folders of the machine where it lies."""
    return Path(model.name).name if Path(model.name).is_absolute() else model.name


def _rounded(values: Float[Tensor, "row column"]) -> list[list[float | None]]:
    return [_finite(row) for row in values.tolist()]


def _finite(numbers: Sequence[float]) -> list[float | None]:
    """Five significant digits; JSON has no NaN."""
    return [float(f"{each:.5g}") if np.isfinite(each) else None for each in numbers]


def _layers(
    model: NeuronModel,
    contexts: TopContexts,
    chosen: Bool[Tensor, "layer neuron"],
    before: int,
    after: int,
    n_tokens: int,
    progress: bool,
) -> dict[int, dict[str, Any]]:
    """Contexts, stretches of text and promoted tokens, layer by layer."""
    written = token_bytes(model)
    hidden = set(model.special_ids)
    spelled = [b"" if id in hidden else each for id, each in enumerate(written)]
    bar = tqdm(
        chosen.any(dim=1).nonzero().flatten().tolist(),
        desc="neuron page",
        unit="layer",
        disable=not progress,
        delay=2,
        leave=False,
    )
    gates = gates_around(model, contexts, chosen, before, after).numpy()
    found, start = {}, 0
    for layer in bar:
        neurons = chosen[layer].nonzero().flatten()
        here = gates[:, start : start + len(neurons)]
        start += len(neurons)
        up, down = promoted_tokens(model, layer, neurons, n_tokens)
        shown = contexts_of(contexts, layer, neurons, here, before, spelled)
        found[layer] = shown | {
            "up": [[token_text(written[id]) for id in row] for row in up.tolist()],
            "down": [[token_text(written[id]) for id in row] for row in down.tolist()],
            "neurons": neurons.tolist(),
        }
    return found


# ---------------------------------------------------------------- the file


def _document(title: str, data: str, *, folder: bool) -> str:
    style, program = (
        (_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    # What may run is this very program; in a folder also what it asks for itself, the layers.
    also = " 'strict-dynamic'" if folder else ""
    policy = (
        f"default-src 'none'; script-src {_hash(program)}{also}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = Template((_HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        policy=policy, title=html.escape(title), style=style, data=data, program=program
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _data(name: str, content: Mapping[str, Any]) -> str:
    return f'<script type="text/plain" id="{name}">{_packed(content)}</script>\n'


def _packed(content: Mapping[str, Any]) -> str:
    """JSON, compressed, in letters that mean nothing in HTML; equal content is equal text."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
