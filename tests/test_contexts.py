"""Where neurons fire most: against a plain sort of every gate, and the same however it is read."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.observe import batches, observe
from interp.counting.top_contexts import TopContexts, gates_around
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.text.corpora import Corpora
from interp.text.reading import read_corpora, read_sentences
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, blocks, files, made_up

N = 4


def contexts_of(model: NeuronModel, corpora: Corpora, out: Path, n: int = N) -> TopContexts:
    return collect(model, corpora, out, keep=Keep(contexts=n), progress=False).contexts


class Everything:
    """Every gate that the pass sees, by row of the language."""

    kinds = ("pre",)

    def __init__(self, mine: Tensor) -> None:
        self.mine, self.gates = mine, {}

    def update(self, kind, layer, values, batch) -> None:
        for place, row in enumerate(batch.rows):
            kept = batch.keep[place].nonzero().flatten().tolist()
            gates = values[place].float().T.tolist()
            self.gates[layer, int(self.mine[row])] = (kept, gates)


def strongest(model: NeuronModel, corpora: Corpora, language: str) -> dict[tuple[int, int], list]:
    """(layer, neuron) → the n largest (gate, row, position), one of each row, in plain Python."""
    rows = corpora.rows[language]
    found: dict[tuple[int, int], list] = {}
    for shard in range(corpora.n_shards):
        seen = Everything((rows.shard == shard).nonzero().flatten())
        for batch in batches(corpora, language, shard, 4096):
            observe(model, batch, [seen])
        for (layer, row), (kept, gates) in seen.gates.items():
            for neuron, gate in enumerate(gates):
                best = max(((gate[at], -at) for at in kept), default=(0.0, 0))
                if best[0] > 0:
                    found.setdefault((layer, neuron), []).append((best[0], row, -best[1]))
    return {key: sorted(each, key=lambda c: (-c[0], c[1]))[:N] for key, each in found.items()}


def listed(contexts: TopContexts, language: str, layer: int, neuron: int) -> list:
    at = (contexts.languages.index(language), layer, neuron)
    return [
        (gate, int(contexts.number[row]), position)
        for gate, row, position in zip(
            contexts.gate[at].tolist(),
            contexts.row[at].tolist(),
            contexts.position[at].tolist(),
            strict=True,
        )
        if row >= 0
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"), [("blocks", torch.bfloat16), ("sentences", torch.float32)]
)
def test_contexts_are_those_of_the_definition(folder, tmp_path, kind, dtype):
    model = load(folder, dtype=dtype)
    text = blocks(model, 24)
    if kind == "sentences":  # of different lengths, and each begins with a special token
        text = read_sentences(
            made_up(24), LANGUAGES, model, n_shards=4, hygiene="off", bos="document"
        )
    contexts = contexts_of(model, text, tmp_path)
    ties = 0
    for code in LANGUAGES:
        expected = strongest(model, text, code)
        for layer in range(model.n_layers):
            for neuron in range(model.d_mlp):
                wanted = expected.get((layer, neuron), [])
                assert listed(contexts, code, layer, neuron) == wanted
                ties += len({gate for gate, _, _ in wanted}) < len(wanted)
    assert ties > 0 or dtype is torch.float32  # or the order of equal gates is not tested


def test_a_context_leads_back_to_its_text(model, corpora, tmp_path):
    contexts = contexts_of(model, corpora, tmp_path)
    for language, code in enumerate(LANGUAGES):
        rows = corpora.rows[code]
        for row in contexts.row[language].unique().tolist():
            if row >= 0:
                number = int(contexts.number[row])
                width = rows.ids.shape[1]
                assert torch.equal(contexts.ids[row, :width], rows.ids[number])
                assert contexts.sources[row] == rows.source[number]
                assert contexts.length[row] == rows.length[number]
    used = set(contexts.row.unique().tolist()) - {-1}
    assert used == set(range(len(contexts.ids)))  # and no text is kept in vain


@pytest.mark.slow
def test_more_contexts_begin_with_fewer(model, corpora, tmp_path):
    few, many = (contexts_of(model, corpora, tmp_path / str(n), n) for n in (2, 6))
    assert torch.equal(few.gate, many.gate[..., :2])
    assert torch.equal(few.position, many.position[..., :2])


@pytest.mark.slow
def test_parts_in_any_order_leave_the_same_bytes(model, corpora, tmp_path):
    keep = Keep(contexts=N)
    collect(model, corpora, tmp_path / "whole", keep=keep, progress=False)
    for index in (3, 1, 2):
        collect(model, corpora, tmp_path / "parts", part=(index, 3), keep=keep, progress=False)
    (tmp_path / "parts" / "pieces" / "0002-en.safetensors").unlink()  # as if killed there
    collect(model, corpora, tmp_path / "parts", keep=keep, progress=False).merge()
    found = files(tmp_path / "whole")
    assert found == files(tmp_path / "parts")
    assert any("contexts.safetensors" in str(name) for name in found)


def test_a_neuron_with_a_trigger_shows_it_and_a_decoy_does_not(tmp_path):
    model = load(tiny_models.build("llama_mha", tmp_path / "model"))
    text = read_corpora(made_up(), LANGUAGES, model, block_length=16, n_shards=4, hygiene="off")
    (trigger,) = model.encode("ie")  # in German and French here, in no English word
    current = torch.zeros(0)

    def plant(values: Tensor, hook: object) -> Tensor:
        values = values.clone()
        values[..., 7] = torch.where(current == trigger, 3.0, -1.0)
        values[..., 9] = 1.0
        return values

    body = model.body

    def watched(ids: Tensor, mask: Tensor | None = None) -> None:
        nonlocal current
        current = ids
        body(ids, mask)

    model.body = watched
    with model.hooks([(model.site(1, "pre"), plant)]):
        contexts = contexts_of(model, text, tmp_path / "run")
    for language, code in enumerate(LANGUAGES):
        shown = [
            int(contexts.ids[row, position])
            for row, position in zip(
                contexts.row[language, 1, 7].tolist(),
                contexts.position[language, 1, 7].tolist(),
                strict=True,
            )
            if row >= 0
        ]
        assert shown == ([] if code == "en" else [trigger] * N)
        assert contexts.gate[language, 1, 7].tolist() == [0.0 if code == "en" else 3.0] * N
        decoy = contexts.row[language, 1, 9], contexts.position[language, 1, 9]
        assert {int(each) for each in contexts.ids[decoy]} != {trigger}


@pytest.mark.slow
def test_gates_around_are_those_of_the_whole_row(model, tmp_path, generator):
    text = read_sentences(made_up(40), LANGUAGES, model, n_shards=4, hygiene="off")
    contexts = contexts_of(model, text, tmp_path)
    chosen = torch.rand(model.n_layers, model.d_mlp, generator=generator) < 0.01
    found = gates_around(model, contexts, chosen, 5, 3, tokens_per_batch=100)
    assert found.shape == (len(LANGUAGES), int(chosen.sum()), N, 9)
    for n, (layer, neuron) in enumerate(chosen.nonzero().tolist()):
        for language in range(len(LANGUAGES)):
            for rank in range(N):
                at = (language, layer, neuron, rank)
                row, position = int(contexts.row[at]), int(contexts.position[at])
                window = found[language, n, rank]
                if row < 0:
                    assert window.isnan().all()
                    continue
                length = int(contexts.length[row])
                caught: list[Tensor] = []
                hook = (model.site(layer, "pre"), lambda v, hook, c=caught: c.append(v[0].clone()))
                with model.hooks([hook]), torch.no_grad():
                    model.body(contexts.ids[row : row + 1, :length].long())
                gate = caught[0][:, neuron]
                for place, value in enumerate(window.tolist(), start=position - 5):
                    if 0 <= place < length:
                        assert value == pytest.approx(float(gate[place]), abs=1e-4)
                    else:
                        assert value != value  # NaN
                assert window[5] == pytest.approx(float(contexts.gate[at]), abs=1e-4)


def test_contexts_come_back_as_they_were_saved(model, corpora, tmp_path):
    contexts = contexts_of(model, corpora, tmp_path)
    contexts.save(tmp_path / "copy.safetensors", {"model": "tiny"})
    again = TopContexts.load(tmp_path / "copy.safetensors")
    for name in ("gate", "row", "position", "ids", "length", "number"):
        assert torch.equal(getattr(again, name), getattr(contexts, name))
    assert (again.sources, again.languages) == (contexts.sources, contexts.languages)


def test_contexts_are_kept_only_where_they_are_asked_for(model, corpora, tmp_path):
    collect(model, corpora, tmp_path, progress=False)
    assert not (tmp_path / "contexts.safetensors").exists()
    with pytest.raises(ValueError, match="contexts is -1"):
        collect(model, corpora, tmp_path, keep=Keep(contexts=-1), progress=False)
    with pytest.raises(ValueError, match="started with another wanted"):
        collect(model, corpora, tmp_path, keep=Keep(contexts=2), progress=False)
