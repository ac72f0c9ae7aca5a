"""The neuron page: what selected neurons fire on in each language, in one HTML file.

The page makes no network requests: text, style and script are in the file, and its content policy
forbids everything else. Text of a corpus is untrusted; it is stored as compressed data and becomes
text nodes, never markup.
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

from interp.counting.expert_tokens import ExpertTokens
from interp.counting.stats import FiringStats
from interp.counting.top_contexts import TopContexts, gates_around
from interp.inference.intervals import jackknife
from interp.models.any_model import AnyModel, as_model
from interp.models.neuron_model import NeuronModel
from interp.prompts.lens import read_out, token_bytes
from interp.reports.page_contexts import contexts_of, token_text, word_edges
from interp.results import artifacts
from interp.results.bars import tqdm
from interp.results.display import counted
from interp.scores.lape import language_entropy
from interp.selections.neuron_selection import NeuronSelection
from interp.text.labels import label_colors
from interp.text.languages import called, is_language, language_of

ONE_FILE = 2000
"""The most neurons in one file; a page with more is a folder with a file for each layer."""

_HERE = Path(__file__).parent
_ROWS = 128  # neurons whose outputs are read at once; each takes two rows of logits


@dataclass(frozen=True, eq=False)
class NeuronPage:
    """A finished page: save it, or show it in a notebook.

    >>> run = interp.collect(model, text, keep=interp.Keep(contexts=2), progress=False)
    >>> chosen = {"LAPE": interp.select_by_entropy(run.firing, fraction=0.002)}
    >>> page = interp.neuron_page(model, run.firing, chosen, run.contexts, progress=False)
    >>> page.title, page.save(folder / "page.html").name
    ('Neurons of babel', 'page.html')
    """

    title: str
    """The title in the browser's tab."""

    index: dict[str, Any]
    """Languages, selections, and the rates of every neuron; JSON."""

    layers: dict[int, dict[str, Any]]
    """Contexts and promoted tokens of each layer with neurons on the page; JSON."""

    def __repr__(self) -> str:
        layers = counted(len(self.layers), "layer")
        return f"NeuronPage({self.title!r}: {counted(self.n_neurons, 'neuron')} in {layers})"

    @property
    def n_neurons(self) -> int:
        return len(self.index["neurons"])

    def html(self) -> str:
        """The page as one file."""
        data = [_data("index", self.index)]
        data += [_data(f"layer-{layer}", content) for layer, content in self.layers.items()]
        return _document(self.title, "".join(data), folder=False)

    def save(self, path: Path | str) -> Path:
        """Write the page, and return the file to open.

        With up to 2000 neurons that is `path`. With more, it is index.html in a folder named after
        `path` without its suffix, next to one file per layer, which is read when it is needed.
        """
        path = Path(path)
        if self.n_neurons <= ONE_FILE:
            artifacts.write_text(path, self.html())
            return path
        folder = path.with_suffix("")
        for layer, content in self.layers.items():
            # A page opened from disk may not fetch files, but it may run a script next to it.
            program = f'neuronLayer({layer},"{_packed(content)}");\n'
            artifacts.write_text(folder / f"layer-{layer}.js", program)
        text = _document(self.title, _data("index", self.index), folder=True)
        artifacts.write_text(folder / "index.html", text)
        return folder / "index.html"

    def _repr_html_(self) -> str:
        if self.n_neurons > ONE_FILE:
            return (
                f"<p>{self.n_neurons:,} neurons are too many for a notebook: open the file "
                "that <code>page.save(path)</code> writes.</p>"
            )
        # In an iframe, so that notebook and page do not affect each other; in ASCII, because the
        # script's hash would be wrong if a viewer decoded UTF-8 as Latin-1.
        escaped = html.escape(self.html()).encode("ascii", "xmlcharrefreplace").decode()
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{escaped}" '
            'style="width:100%;height:46rem;border:1px solid #8884;border-radius:6px"></iframe>'
        )


def neuron_page(
    model: AnyModel,
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
    """A page with every neuron of the named selections.

    It shows each neuron's firing rates with 95 % intervals over shards; its selections; the entropy
    of its firing and the given `scores`; its strongest contexts in each language, with `before`
    tokens before and `after` tokens after, shaded by the gate; and the `n_tokens` tokens that its
    output vector most promotes and most suppresses, by the direct path to the logits. `effects` of
    switching a neuron off have columns layer, neuron, language and value, the increase in loss in
    nats per token, and low and high if there is an interval; of a mixture of experts also expert,
    blank for dense neurons.

    Costs a forward pass of the rows that contexts of these neurons are in.

    >>> run = interp.collect(model, text, keep=interp.Keep(contexts=2), progress=False)
    >>> chosen = {"LAPE": neurons}
    >>> page = interp.neuron_page(model, run.firing, chosen, run.contexts, progress=False)
    >>> page.n_neurons == neurons.union().sum().item()
    True
    """
    model = as_model(model)
    if before < 0 or after < 0:
        raise ValueError(
            f"before={before} and after={after} tokens of context: give 0 or more of each."
        )
    longest = contexts.ids.shape[1]
    before, after = min(before, longest), min(after, longest)
    chosen, selections = _chosen(model, stats, selections, contexts)
    scores = {"entropy (nats)": language_entropy(stats.rate), **(scores or {})}
    indices = chosen.nonzero()
    index = {
        "title": f"Neurons of {_name(model)}",
        "gated": model.gated,
        "fires_by": "gate, before the activation function,"
        if stats.fires_by == "gate"
        else stats.fires_by,
        "layers": model.n_layers,
        "width": model.d_mlp,
        "units": None if stats.layout is None else stats.layout.sizes,
        "shards": stats.n_shards,
        "noun": called(stats.languages).removesuffix("s"),
        "languages": [
            _language(label, color, tokens)
            for label, color, tokens in zip(
                stats.languages,
                label_colors(stats.languages),
                stats.tokens.sum(0).tolist(),
                strict=True,
            )
        ],
        "selections": list(selections),
        "scores": list(scores),
        "window": [before, after],
        "neurons": _neurons(stats, selections, scores, indices),
        "seen": None if stats.experts is None else _seen(stats.experts, indices),
        "effects": None if effects is None else _effects(effects, stats, indices),
    }
    layers = _layers(model, contexts, chosen, before, after, n_tokens, progress)
    return NeuronPage(index["title"], index, layers)


def promoted_tokens(
    model: NeuronModel, layer: int, neurons: Int64[Tensor, " neuron"], n_tokens: int
) -> tuple[Int64[Tensor, "neuron token"], Int64[Tensor, "neuron token"]]:
    """Tokens that each neuron's output vector promotes, and those it suppresses; strongest first.

    The vector, scaled to norm √d_model, is read out alone, minus the logits of its negative. That
    is the direct path to the logits, for an output above zero: one below zero swaps the two lists.
    Effects through later layers are not seen. None, if TransformerLens shows no residual stream of
    the model, as of DeepSeek-V4.
    """
    if "resid_post" not in model.sites(layer):
        none = torch.zeros(len(neurons), 0, dtype=torch.int64)
        return none, none
    up, down = [], []
    for rows in neurons.split(_ROWS):
        logits = direct_logits(model, layer, rows)
        n = min(n_tokens, logits.shape[1])
        up.append(logits.topk(n).indices.cpu())
        down.append((-logits).topk(n).indices.cpu())
    return torch.cat(up), torch.cat(down)


def direct_logits(
    model: NeuronModel, layer: int, neurons: Int64[Tensor, " neuron"]
) -> Float[Tensor, "neuron vocab"]:
    """What output vectors of norm √d_model add to the logits, read out alone; see
    `promoted_tokens`."""
    write = model.written(layer, neurons).float()
    state = write * (model.d_model**0.5 / write.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    return (read_out(model, state) - read_out(model, -state)).float()


# ---------------------------------------------------------------- data of each neuron


def _chosen(
    model: NeuronModel,
    stats: FiringStats,
    selections: Mapping[str, NeuronSelection],
    contexts: TopContexts,
) -> tuple[Bool[Tensor, "layer neuron"], dict[str, NeuronSelection]]:
    """The neurons in any selection; an error if the arguments are not of one model and run."""
    selections = {name: selection.neurons() for name, selection in selections.items()}
    shape = (len(stats.languages), model.n_layers, model.d_mlp)
    for what, actual, codes in (
        ("counts", (len(stats.languages), stats.n_layers, stats.d_mlp), stats.languages),
        ("contexts", tuple(contexts.gate.shape[:3]), contexts.languages),
    ):
        if actual != shape or codes != stats.languages:
            raise ValueError(
                f"The {what} are of {actual[1]} layers of {actual[2]} neurons in "
                f"{', '.join(codes)}, but {model.name} has {model.n_layers} of {model.d_mlp}, and "
                f"the counts are in {', '.join(stats.languages)}: give results of one run with "
                "this model."
            )
    chosen = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    for name, selection in selections.items():
        selection.check_model(model)
        if missing := [code for code in selection.languages if code not in stats.languages]:
            raise ValueError(
                f"{name} has neurons of {', '.join(missing)}, but the counts are in "
                f"{', '.join(stats.languages)}: remove those languages, in Python with "
                "languages_only."
            )
        chosen |= selection.union()
    if not chosen.any():
        raise ValueError(
            f"The selections ({', '.join(selections) or 'none'}) have no neurons: give others."
        )
    return chosen, selections


def _neurons(
    stats: FiringStats,
    selections: Mapping[str, NeuronSelection],
    scores: Mapping[str, Tensor],
    indices: Int64[Tensor, "chosen 2"],
) -> list[list[Any]]:
    """For each: layer, index, rates with low and high ends, scores, and (selection, language)s."""
    layer, neuron = indices.unbind(1)
    rates = [_rounded(end) for end in rates_of(stats, indices)]
    valued = _rounded(torch.stack([score[layer, neuron].double() for score in scores.values()], 1))
    members: list[list[list[int]]] = [[] for _ in range(len(indices))]
    for number, selection in enumerate(selections.values()):
        for row, n in selection.mask[:, layer, neuron].nonzero().tolist():
            members[n].append([number, stats.languages.index(selection.languages[row])])
    return [
        [*index, *fields]
        for index, *fields in zip(indices.tolist(), *rates, valued, members, strict=True)
    ]


def _seen(experts: ExpertTokens, indices: Int64[Tensor, "chosen 2"]) -> list[list[int]]:
    """For each neuron, the tokens of every language that it saw."""
    layer, neuron = indices.unbind(1)
    seen = experts.total[:, layer, neuron]
    return rearrange(seen, "language chosen -> chosen language").tolist()


def rates_of(
    stats: FiringStats, indices: Int64[Tensor, "chosen 2"]
) -> tuple[Float[Tensor, "chosen language"], ...]:
    """Firing rates of neurons, given by layer and index, and the ends of their 95 % intervals.

    NaN: there is one shard, and so no interval; or the neuron saw too few tokens.
    """
    chosen = stats.at(*indices.unbind(1))
    if stats.n_shards > 1:
        rate = jackknife(chosen, lambda part: part.rate)
        ends = [rate.value, rate.low.clamp_min(0), rate.high.clamp_max(1)]
    else:
        unknown = torch.full_like(chosen.rate, torch.nan)
        ends = [chosen.rate, unknown, unknown]
    return tuple(rearrange(end, "language 1 chosen -> chosen language") for end in ends)


def _effects(
    effects: pd.DataFrame, stats: FiringStats, indices: Int64[Tensor, "chosen 2"]
) -> list[list[list[float | None] | None] | None]:
    """For each neuron and language, the value and its interval ends; None: not measured."""
    languages, layout = stats.languages, stats.layout
    needed = ["layer", *([] if layout is None else ["expert"]), "neuron", "language", "value"]
    if missing := [name for name in needed if name not in effects.columns]:
        raise ValueError(
            f"The effects have no column {', '.join(missing)}: give {', '.join(needed)}, and low "
            "and high if there is an interval."
        )
    measured: dict[tuple[int, int], list[list[float | None] | None]] = {}
    for row in effects.to_dict("records"):
        if row["language"] in languages:
            layer, neuron = int(row["layer"]), int(row["neuron"])
            if layout is not None:
                expert = None if pd.isna(row["expert"]) else int(row["expert"])
                neuron = layout.unit(layer, expert, neuron)
            by_language = measured.setdefault((layer, neuron), [None] * len(languages))
            numbers = [float(row.get(name, np.nan)) for name in ("value", "low", "high")]
            by_language[languages.index(row["language"])] = _finite(numbers)
    return [measured.get((layer, neuron)) for layer, neuron in indices.tolist()]


def _language(label: str, color: str, tokens: int) -> dict[str, Any]:
    known, named = language_of(label), is_language(label)
    return {
        "code": label,
        "tokens": tokens,
        # The first letter decides only where it must: a context may begin with a foreign name.
        "direction": known.direction if known else "auto",
        "name": known.name if known and named else label,
        "endonym": known.endonym if known and named else label,
        "lang": known.code if known else "",
        "color": color,
    }


def _name(model: NeuronModel) -> str:
    """The model's name, without local folders."""
    return Path(model.name).name if Path(model.name).is_absolute() else model.name


def _rounded(values: Float[Tensor, "row column"]) -> list[list[float | None]]:
    return [_finite(row) for row in values.tolist()]


def _finite(numbers: Sequence[float]) -> list[float | None]:
    """Five significant digits; JSON has no NaN."""
    return [float(f"{number:.5g}") if np.isfinite(number) else None for number in numbers]


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
    spelled = [b"" if id in hidden else token for id, token in enumerate(written)]
    edges = word_edges(spelled)
    bar = tqdm(
        chosen.any(dim=1).nonzero().flatten().tolist(),
        desc="neuron page",
        unit="layer",
        disable=not progress,
    )
    gates = gates_around(model, contexts, chosen, before, after).numpy()
    layers, start = {}, 0
    for layer in bar:
        neurons = chosen[layer].nonzero().flatten()
        of_layer = gates[:, start : start + len(neurons)]
        start += len(neurons)
        up, down = promoted_tokens(model, layer, neurons, n_tokens)
        shown = contexts_of(contexts, layer, neurons, of_layer, before, spelled, edges)
        layers[layer] = shown | {
            "up": [[token_text(written[id]) for id in row] for row in up.tolist()],
            "down": [[token_text(written[id]) for id in row] for row in down.tolist()],
            "neurons": neurons.tolist(),
        }
    return layers


# ---------------------------------------------------------------- the file


def _document(title: str, data: str, *, folder: bool) -> str:
    style, program = (
        (_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    # Only this script may run; in a folder, so may the layer files that it loads itself.
    loaded = " 'strict-dynamic'" if folder else ""
    policy = (
        f"default-src 'none'; script-src {_hash(program)}{loaded}; style-src {_hash(style)}; "
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
    """Compressed JSON in Base64, which is safe in HTML; equal content gives equal text."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
