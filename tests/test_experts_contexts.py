"""Where neurons of experts fire most: against plain loops over tokens and experts."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.counting import fitting
from interp.counting.batch import Batch
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.observe import batches, observe
from interp.counting.plan import plan_run
from interp.counting.top_contexts import TopContexts, _Best, gates_around
from interp.models.experts import Rows
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from interp.results.words import Kind
from interp.text.corpora import Corpora
from interp.text.reading import read_corpora, read_sentences
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, files, made_up
from tests.expert_loops import by_loops
from tests.tiny_models import MIXTURES

N = 3


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_models.build(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """It has dense layers, shared experts and routed ones."""
    return load(tiny_models.build("deepseek_v3", tmp_path_factory.mktemp("deepseek")))


def sentences(model: MixtureModel, n_lines: int = 16) -> Corpora:
    """Of different lengths, each after a special token, which does not count."""
    return read_sentences(
        made_up(n_lines), LANGUAGES, model, n_shards=2, hygiene="off", bos="document"
    )


def contexts_of(model: MixtureModel, text: Corpora, out: Path | None = None) -> TopContexts:
    return collect(model, text, out, keep=Keep(contexts=N), progress=False).contexts


class Everything:
    """Every gate of a pass, by layer, expert (-1: dense neurons), row of the language and token."""

    kinds: tuple[Kind, ...] = ("pre",)

    def __init__(self, number: Tensor) -> None:
        self.number = number
        self.gates: dict[tuple[int, int, int, int], Tensor] = {}

    def update(self, kind: Any, layer: int, values: Tensor, batch: Batch) -> None:
        raise AssertionError("a mixture shows its neurons in rows")

    def update_rows(self, kind: Any, layer: int, values: Tensor, rows: Rows, batch: Batch) -> None:
        for line, token in enumerate(rows.token.tolist()):
            text, position = divmod(token, batch.ids.shape[1])
            expert = -1 if rows.expert is None else int(rows.expert[line])
            if batch.keep[text, position]:
                number = int(self.number[batch.rows[text]])
                self.gates[layer, expert, number, position] = values[line]


def strongest(
    model: MixtureModel, text: Corpora, language: str
) -> dict[tuple[int, int], list[tuple[float, int, int]]]:
    """(layer, unit) → the N largest (gate, row, position), one of each row, in plain Python. The
    gates are those of loops over tokens and experts."""
    rows = text.rows[language]
    best: Any = defaultdict(dict)
    for shard in range(text.n_shards):
        seen = Everything((rows.shard == shard).nonzero().flatten())
        for batch in batches(text, language, shard, 4096):
            observe(model, batch, [seen])
        slow: dict[tuple[int, int, int, int], Tensor] = {}
        for number in seen.number.tolist():
            with by_loops(model, {}) as looped:
                model.body(rows.ids[number : number + 1, : rows.length[number]].long())
            slow |= {(layer, expert, number, at): gate for layer, at, expert, gate, _ in looped}
        routed = {key for key in seen.gates if key[1] >= 0}
        kept = {key for key in slow if int(rows.ids[key[2], key[3]]) not in text.special_ids}
        assert routed == kept  # tokens that were not routed there are not there
        for key in sorted(seen.gates):
            layer, expert, number, position = key
            if expert >= 0:
                torch.testing.assert_close(seen.gates[key], slow[key], rtol=1e-4, atol=1e-5)
            first = model.layout.unit(layer, expert, 0) if expert >= 0 else 0
            for neuron, gate in enumerate(seen.gates[key].tolist()):
                before = best[layer, first + neuron].get(number, (0.0, number, -1))
                if gate > before[0]:
                    best[layer, first + neuron][number] = (gate, number, position)
    return {
        unit: sorted(of_rows.values(), key=lambda context: (-context[0], context[1]))[:N]
        for unit, of_rows in best.items()
    }


def listed(contexts: TopContexts, language: str, layer: int, unit: int) -> list[Any]:
    at = (contexts.languages.index(language), layer, unit)
    fields = (field[at].tolist() for field in (contexts.gate, contexts.row, contexts.position))
    return [
        (gate, int(contexts.number[row]), position)
        for gate, row, position in zip(*fields, strict=True)
        if row >= 0
    ]


@pytest.mark.slow
def test_contexts_are_those_of_loops_over_tokens_and_experts(mixture: MixtureModel) -> None:
    text = sentences(mixture)
    contexts = contexts_of(mixture, text)
    n_seen = 0
    for code in LANGUAGES:
        expected = strongest(mixture, text, code)
        for layer in range(mixture.n_layers):
            for unit in range(mixture.d_mlp):
                wanted = expected.get((layer, unit), [])
                assert listed(contexts, code, layer, unit) == wanted, (code, layer, unit)
                n_seen += len(wanted)
    assert n_seen > 1000


def test_a_neuron_with_a_trigger_shows_it_where_its_expert_gets_it(deepseek: MixtureModel) -> None:
    """Neuron 7 of expert 1 fires on one token alone. Neuron 7 of expert 2 fires on the others, and
    so does a shared one, on all of them: decoys."""
    text = read_corpora(made_up(), LANGUAGES, deepseek, block_length=16, n_shards=2, hygiene="off")
    (trigger,) = deepseek.encode("ie")
    current, body, routed = torch.zeros(0), deepseek.body, set()

    def watched(ids: Tensor, mask: Tensor | None = None) -> None:
        nonlocal current
        current = ids.flatten()
        body(ids, mask)

    def plant(values: Tensor, hook: Rows) -> Tensor:
        values, ids = values.clone(), current[hook.token]
        values[:, 7] = torch.where(ids == trigger, 3.0, -1.0)
        if hook.expert is not None:
            routed.update(ids[hook.expert == 1].tolist())
            values[hook.expert == 2, 7] *= -1
        return values

    with (
        pytest.MonkeyPatch.context() as patch,
        deepseek.hooks([(deepseek.rows_site(1, "pre"), plant)]),
    ):
        patch.setattr(deepseek, "body", watched)
        contexts = contexts_of(deepseek, text)
    assert trigger in routed

    def tokens(unit: int) -> list[set[int]]:
        rows, positions = contexts.row[:, 1, unit], contexts.position[:, 1, unit]
        return [
            {int(contexts.ids[row, at]) for row, at in zip(*pair, strict=True) if row >= 0}
            for pair in zip(rows.tolist(), positions.tolist(), strict=True)
        ]

    units = [deepseek.layout.unit(1, expert, 7) for expert in (1, 2)]
    planted, decoy = map(tokens, units)
    assert set.union(*planted) == {trigger}
    assert not planted[LANGUAGES.index("en")]  # no English word here has it
    assert all(decoy)
    assert trigger not in set.union(*decoy)
    assert set.union(*tokens(7)) == {trigger}


@pytest.mark.slow
def test_parts_in_any_order_leave_the_same_bytes(deepseek: MixtureModel, tmp_path: Path) -> None:
    text, keep = sentences(deepseek, 40), Keep(contexts=N, moments=True)
    collect(deepseek, text, tmp_path / "whole", keep=keep, progress=False)
    for index in (3, 1, 2):
        collect(deepseek, text, tmp_path / "parts", part=(index, 3), keep=keep, progress=False)
    (tmp_path / "parts" / "pieces" / "0001-en.safetensors").unlink()  # as if killed there
    collect(deepseek, text, tmp_path / "parts", keep=keep, progress=False).merge()
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


@pytest.mark.slow
def test_memory_that_runs_out_between_experts_doubles_nothing(
    deepseek: MixtureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs out in the last expert of a layer, when others have been looked at."""
    text = sentences(deepseek, 40)
    whole = contexts_of(deepseek, text)
    with_rows, calls = _Best.with_rows, 0

    def fails_once(self: _Best, *given: Any) -> _Best:
        nonlocal calls
        calls += len(given) == 3 and given[2] is not None
        if calls == 3:
            calls += 1
            raise torch.OutOfMemoryError
        return with_rows(self, *given)

    monkeypatch.setattr(_Best, "with_rows", fails_once)
    with pytest.warns(match="Out of memory"):
        halved = contexts_of(deepseek, text)
    deepseek.ran_out_at = None
    assert calls > 3
    torch.testing.assert_close(halved.gate, whole.gate, rtol=1e-4, atol=1e-5)
    ordered = halved.row.sort(dim=-1).values
    assert not ((ordered.diff(dim=-1) == 0) & (ordered[..., 1:] >= 0)).any()  # no row twice


@pytest.mark.slow
def test_gates_around_are_those_of_the_tokens_that_the_expert_gets(
    mixture: MixtureModel,
) -> None:
    text = sentences(mixture)
    contexts = contexts_of(mixture, text)
    chosen = torch.zeros(mixture.n_layers, mixture.d_mlp, dtype=torch.bool)
    chosen[:, ::29] = True
    chosen &= mixture.layout.exists
    found = gates_around(mixture, contexts, chosen, 4, 2, tokens_per_batch=100)
    assert found.isneginf().any()
    for language, code in enumerate(LANGUAGES):
        gates: dict[tuple[int, int, int, int], Tensor] = {}
        rows = text.rows[code]
        for shard in range(text.n_shards):
            seen = Everything((rows.shard == shard).nonzero().flatten())
            for batch in batches(text, code, shard, 4096):
                observe(mixture, batch, [seen])
            gates |= seen.gates
        for n, (layer, unit) in enumerate(chosen.nonzero().tolist()):
            address = mixture.layout.address(layer, unit)
            expert = -1 if address.expert is None else address.expert
            for rank in range(N):
                row = int(contexts.row[language, layer, unit, rank])
                position = int(contexts.position[language, layer, unit, rank])
                for at, gate in enumerate(found[language, n, rank].tolist(), position - 4):
                    if row < 0 or not 0 <= at < contexts.length[row]:
                        assert gate != gate  # NaN
                        continue
                    key = (layer, expert, int(contexts.number[row]), at)
                    if int(contexts.ids[row, at]) in text.special_ids:
                        continue  # read, though it does not count
                    assert (gate == -torch.inf) == (key not in gates)
                    if key in gates:
                        expected = gates[key][address.neuron].item()
                        assert gate == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_bytes_of_contexts_are_those_planned(deepseek: MixtureModel, tmp_path: Path) -> None:
    text = read_corpora(
        made_up(40), LANGUAGES, deepseek, block_length=16, n_shards=2, hygiene="off", tokens=256
    )
    keep = Keep(contexts=N)
    collect(deepseek, text, tmp_path / "run", keep=keep, progress=False)
    plan = plan_run(deepseek, len(LANGUAGES), 256, n_shards=2, row_tokens=16, keep=keep)
    written = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors"))
    assert plan.disk == pytest.approx(written, rel=0.2)


def test_what_does_not_fit_is_refused_before_anything_is_read(
    deepseek: MixtureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"Keeping contexts of .* neurons needs .* of memory"):
        contexts_of(deepseek, sentences(deepseek))
