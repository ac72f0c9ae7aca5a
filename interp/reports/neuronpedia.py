"""Write selected neurons in the layout that Neuronpedia imports (v1), and read what others wrote.

    MODEL/LAYER-SET/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl
    MODEL/LAYER-SET/features/batch-0.jsonl.gz, activations/batch-0.jsonl.gz

A feature is a neuron, and an activation is one of its contexts: act(gate) on every token of the
window. Fields that are about dictionaries are there and empty. Neuronpedia gives an importer's
account its own id; ours is a placeholder.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from einops import reduce
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interp.counting.stats import FiringStats
from interp.counting.top_contexts import TopContexts, gates_around
from interp.models.any_model import AnyModel, as_model
from interp.models.mixture_model import MixtureModel
from interp.models.neuron_model import NeuronModel
from interp.prompts.lens import token_bytes
from interp.reports.neuron_page import direct_logits
from interp.reports.page_contexts import token_text
from interp.results import artifacts
from interp.selections.neuron_selection import NeuronSelection

CREATOR = "polyneuron"

_BATCH = 128
"""Features per file."""

_DICTIONARY = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1"),
    *("correlated_features_indices", "correlated_features_pearson", "correlated_features_l1"),
    *("freq_hist_data_bar_heights", "freq_hist_data_bar_values"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist"),
    *("topkCosSimIndices", "topkCosSimValues", "vector"),
)
"""Lists of a feature that stay empty."""


class _Names(NamedTuple):
    model: str
    source_set: str
    release: str
    author: str
    created: str

    def source(self, layer: int) -> str:
        return f"{layer}-{self.source_set}"


def write_neuronpedia(
    model: AnyModel,
    stats: FiringStats,
    selection: NeuronSelection,
    contexts: TopContexts,
    folder: Path | str,
    *,
    name: str,
    source_set: str = "language-neurons",
    release: str = "language-neurons",
    author: str = "",
    before: int = 24,
    after: int = 12,
    n_tokens: int = 10,
) -> Path:
    """Write every neuron of a selection as a feature; returns MODEL's folder, which must be new.

    `name` is the model's on Neuronpedia, such as "gemma-2-2b". A feature has its strongest contexts
    in every language, `before` tokens before to `after` tokens after; the share of all tokens on
    which it fires; and the `n_tokens` tokens that its output promotes and suppresses most.

    >>> run = interp.collect(model, text, keep=interp.Keep(contexts=2), progress=False)
    >>> chosen = interp.NeuronSelection(neurons.mask[:1], neurons.languages[:1])
    >>> written = interp.reports.write_neuronpedia(
    ...     model, run.firing, chosen, run.contexts, folder, name="babel"
    ... )
    >>> written.name
    'babel'
    """
    model = as_model(model)
    chosen = selection.neurons()
    chosen.check_model(model)
    _check(model, stats, contexts)
    out = Path(folder) / name
    artifacts.refuse_existing(out)
    names = _Names(name, source_set, release, author, datetime.now(UTC).date().isoformat())
    mask = chosen.union()
    gates = gates_around(model, contexts, mask, before, after)
    written = token_bytes(model)
    fired = reduce(stats.total, "language layer neuron -> layer neuron", "sum")
    rate = fired.double() / stats.tokens.sum()
    start = 0
    for layer in mask.any(dim=1).nonzero().flatten().tolist():
        neurons = mask[layer].nonzero().flatten()
        of_layer = model.act(layer, gates[:, start : start + len(neurons)].to(model.device)).cpu()
        start += len(neurons)
        source = out / names.source(layer)
        for file, record in _heads(names, model, layer).items():
            artifacts.write_text(source / file, json.dumps(record) + "\n")
        activations = [
            list(_activations(names, contexts, layer, neuron, own, before, written))
            for neuron, own in zip(neurons.tolist(), of_layer.unbind(dim=1), strict=True)
        ]
        promoted = _promoted(model, layer, neurons, n_tokens, written)
        features = [
            [_feature(names, layer, neuron, rate[layer, neuron].item(), own) | tokens]
            for neuron, own, tokens in zip(neurons.tolist(), activations, promoted, strict=True)
        ]
        _write_batches(source / "features", features)
        _write_batches(source / "activations", activations)
    return out


def read_neuronpedia(folder: Path | str) -> pd.DataFrame:
    """A row for each neuron of an export of Neuronpedia or SAEDashboard (v1), by layer and index.

    `folder` holds the export, of one source or of several. Columns: `rate`, the share of tokens on
    which the activation is not zero, which is how often the neuron fires for ReLU alone; `largest`,
    its largest activation; `promotes` and `suppresses`, tokens; `contexts`, how many are in the
    export, and `strongest`, the token of the strongest. Neither counts nor languages are in an
    export, so it holds no statistics that a selection could be made from. Layout v2, which
    describes its records in a file of its own, is not read.

    >>> run = interp.collect(model, text, keep=interp.Keep(contexts=2), progress=False)
    >>> german = interp.NeuronSelection(neurons.mask[1:2], ("de",))
    >>> exported = interp.reports.write_neuronpedia(
    ...     model, run.firing, german, run.contexts, folder, name="babel-german"
    ... )
    >>> table = interp.reports.read_neuronpedia(exported)
    >>> len(table) == neurons.counts()["de"]
    True
    """
    sources = sorted(path.parent for path in Path(folder).rglob("features") if path.is_dir())
    if not sources:
        raise FileNotFoundError(
            f"{folder} holds no folder named features: give the folder of an export (v1), with "
            "features/batch-N.jsonl.gz in it or below it."
        )
    rows = []
    for source in sources:
        contexts: dict[str, list[tuple[float, str]]] = {}
        for path, line in _lines(source / "activations"):
            with _refused(path):
                strongest = line["tokens"][line["maxValueTokenIndex"]]
                contexts.setdefault(line["index"], []).append((float(line["maxValue"]), strongest))
        for path, line in _lines(source / "features"):
            with _refused(path):
                own = contexts.get(line["index"], [])
                rows.append(
                    {
                        **{"model": line["modelId"], "source": line["layer"]},
                        "layer": int(line["layer"].split("-")[0]),
                        "neuron": int(line["index"]),
                        "rate": float(line["frac_nonzero"]),
                        "largest": float(line["maxActApprox"]),
                        "promotes": "  ".join(line["pos_str"]),
                        "suppresses": "  ".join(line["neg_str"]),
                        "contexts": len(own),
                        "strongest": max(own)[1] if own else "",
                    }
                )
    if not rows:
        raise ValueError(f"The batches of {folder} hold no neuron: download the export again.")
    table = pd.DataFrame(rows)
    if (twice := table.duplicated(["model", "source", "neuron"])).any():
        first = table[twice].iloc[0]
        raise ValueError(
            f"{folder} has neuron {first['neuron']} of {first['source']} twice: give the folder of "
            "one export."
        )
    return table.sort_values(["layer", "source", "neuron"], ignore_index=True)


def _lines(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every record of a folder's batches, with the file it is from."""
    for path in sorted(folder.glob("batch-*.jsonl*")):
        with _refused(path):
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
            records = [json.loads(line) for line in text.splitlines() if line]
        for record in records:
            yield path, record


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Within the block, what does not fit the layout is an error that names the file."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is not a batch of an export (v1) of Neuronpedia, or is damaged "
            f"({type(error).__name__}: {error}): download it again."
        ) from None


def _check(model: NeuronModel, stats: FiringStats, contexts: TopContexts) -> None:
    if isinstance(model, MixtureModel):
        raise ValueError(
            f"{model.name} is a mixture of experts, and this layout names a neuron by its layer "
            "and one index: write its neuron page (interp page)."
        )
    shape = (len(stats.languages), model.n_layers, model.d_mlp)
    if tuple(contexts.gate.shape[:3]) != shape or contexts.languages != stats.languages:
        raise ValueError(
            f"The contexts and counts are not of one run of {model.name}: give run.firing and "
            "run.contexts of the same run."
        )


def _heads(names: _Names, model: NeuronModel, layer: int) -> dict[str, dict[str, Any]]:
    """The four files about model, release, set and source."""
    common = {"creatorId": CREATOR, "createdAt": names.created, "visibility": "PUBLIC"}
    return {
        "release.jsonl": common
        | {
            **{"name": names.release, "description": names.release, "urls": []},
            **{"creatorName": names.author, "creatorNameShort": names.author},
        },
        "model.jsonl": common
        | {
            **{"id": names.model, "displayName": names.model, "displayNameShort": names.model},
            **{"instruct": False, "layers": model.n_layers, "neuronsPerLayer": model.d_mlp},
            **{"updatedAt": names.created},
        },
        "sourceset.jsonl": common
        | {
            **{"modelId": names.model, "name": names.source_set, "creatorName": names.author},
            **{"description": "MLP neurons", "releaseName": names.release, "type": "neurons"},
        },
        "source.jsonl": common
        | {
            **{"id": names.source(layer), "modelId": names.model, "setName": names.source_set},
            **{"hasDashboards": True, "inferenceEnabled": False},
        },
    }


def _feature(
    names: _Names, layer: int, neuron: int, rate: float, own: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        **{"modelId": names.model, "layer": names.source(layer), "index": str(neuron)},
        **{"creatorId": CREATOR, "createdAt": names.created, "hasVector": False},
        "maxActApprox": max((activation["maxValue"] for activation in own), default=0.0),
        "frac_nonzero": rate,
        **{"hookName": None, "vectorLabel": None},
        **{name: [] for name in _DICTIONARY},
    }


def _activations(
    names: _Names,
    contexts: TopContexts,
    layer: int,
    neuron: int,
    values: Float[Tensor, "language rank window"],
    before: int,
    written: Sequence[bytes],
) -> Iterator[dict[str, Any]]:
    """The contexts of one neuron, strongest first in each language."""
    for language, code in enumerate(contexts.languages):
        for rank in range(contexts.n):
            row = int(contexts.row[language, layer, neuron, rank])
            if row < 0:
                continue
            window = values[language, rank]
            real: Bool[Tensor, " window"] = ~window.isnan()
            first = int(contexts.position[language, layer, neuron, rank]) - before
            positions: Int64[Tensor, " token"] = first + real.nonzero().flatten()
            acts = [float(f"{value:.5g}") for value in window[real].tolist()]
            tokens = [token_text(written[id]) for id in contexts.ids[row, positions].tolist()]
            key = f"{names} {layer} {neuron} {code} {rank}".encode()
            yield {
                "id": blake2b(key, digest_size=12).hexdigest(),
                **{"modelId": names.model, "layer": names.source(layer), "index": str(neuron)},
                **{"creatorId": CREATOR, "createdAt": names.created},
                **{"tokens": tokens, "values": acts},
                **{"maxValue": max(acts), "maxValueTokenIndex": acts.index(max(acts))},
                "minValue": min(acts),
                **{"dataSource": code, "dataIndex": contexts.sources[row]},
                **{"dfaValues": [], "lossValues": []},
            }


def _promoted(
    model: NeuronModel,
    layer: int,
    neurons: Int64[Tensor, " neuron"],
    n_tokens: int,
    written: Sequence[bytes],
) -> Iterator[dict[str, Any]]:
    """Tokens that each neuron's output promotes and suppresses, with what it adds to the logits."""
    for rows in neurons.split(_BATCH):
        logits = direct_logits(model, layer, rows).cpu()
        for row in logits:
            up, down = (row.topk(min(n_tokens, len(row)), largest=up) for up in (True, False))
            yield {
                "pos_str": [token_text(written[id]) for id in up.indices.tolist()],
                "pos_values": [float(f"{value:.5g}") for value in up.values.tolist()],
                "neg_str": [token_text(written[id]) for id in down.indices.tolist()],
                "neg_values": [float(f"{value:.5g}") for value in down.values.tolist()],
            }


def _write_batches(folder: Path, by_feature: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    for number, start in enumerate(range(0, len(by_feature), _BATCH)):
        rows = [row for part in by_feature[start : start + _BATCH] for row in part]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        content = gzip.compress(text.encode(), 6, mtime=0)
        artifacts.write_bytes(folder / f"batch-{number}.jsonl.gz", content)
