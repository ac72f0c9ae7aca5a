"""Losses by chunks, and what turning neurons off does to them: against plain models, row by row."""

import functools
import inspect
import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from interp.evaluations.losses import Losses, losses_under
from interp.evaluations.perplexity import PerplexityMatrix, perplexity_matrix
from interp.interventions.edits import Change, deactivate, intervene, override, scale
from interp.interventions.under import check_under
from interp.models.load import load, wrap
from interp.models.neuron_model import NeuronModel
from interp.results.words import NOTHING
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora, Rows
from interp.text.reading import read_corpora, read_sentences
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, files, made_up
from tests.test_model import classic_only, close, every_architecture, right_padded, some_ids
from tests.tiny_models import N_LAYERS, N_VOCAB


@pytest.fixture(scope="module")
def open_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NeuronModel]:
    @functools.cache
    def open_once(name: str, **options: Any) -> NeuronModel:
        folder = tiny_models.build(name, tmp_path_factory.mktemp("checkpoint"))
        return load(folder, **options)

    return open_once


@pytest.fixture(scope="module")
def model(open_model: Callable[..., NeuronModel]) -> NeuronModel:
    return open_model("qwen2")


def read(model: NeuronModel, bos: Any) -> Corpora:
    """Two blocks in each of three shards."""
    return read_corpora(
        made_up(),
        LANGUAGES,
        model,
        block_length=16,
        tokens=2 * 3 * 16,
        n_shards=3,
        bos=bos,
        hygiene="off",
        progress=False,
    )


@pytest.fixture(scope="module")
def text(model: NeuronModel) -> Corpora:
    """Blocks that begin with a beginning-of-text token."""
    return read(model, "block")


@pytest.fixture(scope="module")
def documents(model: NeuronModel) -> Corpora:
    """Blocks in which there is a beginning-of-text token before every document."""
    return read(model, "document")


@pytest.fixture(scope="module")
def sentences(model: NeuronModel) -> Corpora:
    """Rows of many lengths, without any special token."""
    return read_sentences(
        made_up(), LANGUAGES, model, sentences=7, n_shards=3, hygiene="off", progress=False
    )


def some_neurons(model: NeuronModel, languages: tuple[str, ...] = LANGUAGES) -> NeuronSelection:
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(len(languages), model.n_layers, model.d_mlp, generator=generator) < 0.2
    return NeuronSelection(mask, languages)


def matrix_of(
    model: NeuronModel, selection: NeuronSelection, text: Corpora, **options: Any
) -> PerplexityMatrix:
    return perplexity_matrix(model, selection, text, **{"progress": False, "n_draws": 0} | options)


def cross_entropy(model: NeuronModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """The definition: all logits at once."""
    logits = model.logits(ids, mask)[:, :-1].double().log_softmax(dim=-1)
    nats = -logits.gather(-1, ids[:, 1:, None])[..., 0]
    return nats if mask is None else nats * mask[:, 1:]


class TestLossesOfAModel:
    @every_architecture
    def test_they_are_the_cross_entropy_of_the_logits(self, name: str, open_model: Any) -> None:
        model, ids = open_model(name), some_ids(3)
        padded, mask = right_padded(ids, [20, 11, 1])
        neurons = torch.zeros(N_LAYERS, model.d_mlp, dtype=torch.bool)
        neurons[:, ::3] = True
        with torch.inference_mode():
            before = cross_entropy(model, ids)
            for rows in (7, 256):
                assert close(model.losses(ids, rows=rows), before)
                assert close(model.losses(padded, mask, rows), cross_entropy(model, padded, mask))
            with intervene(model, neurons, deactivate):
                changed = model.losses(ids, rows=7)
                assert close(changed, cross_entropy(model, ids))
            assert not close(changed, before, 1e-2)
            assert close(model.losses(ids), before)

    @pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "bloom"])
    def test_so_they_are_with_hooked_attention(self, name: str, open_model: Any) -> None:
        model, ids = open_model(name, attention="hooked"), some_ids()
        with torch.no_grad():
            assert close(model.losses(ids, rows=9), cross_entropy(model, ids))

    @pytest.mark.parametrize(
        ("prefix", "setting"),
        [
            ("Gemma2", {"final_logit_softcapping": 2.0}),
            ("OPT", {"word_embed_proj_dim": 32}),
            ("Cohere", {"logit_scale": 0.3}),
        ],
    )
    def test_what_a_model_does_to_its_logits_is_done(
        self, prefix: str, setting: dict[str, Any], tmp_path: Path, monkeypatch: Any
    ) -> None:
        base = tiny_models.CONFIGS.get(prefix.lower(), tiny_models.CONFIGS["llama"])[1]
        monkeypatch.setitem(tiny_models.CONFIGS, "special", (prefix, {**base, **setting}))
        model, ids = load(tiny_models.build("special", tmp_path)), some_ids()
        with torch.no_grad():
            expected = cross_entropy(model, ids)
            assert close(model.losses(ids, rows=9), expected)
            head = model.bridge.original_model.get_output_embeddings()
            raw = head(model._hidden(ids, None))[:, :-1].log_softmax(dim=-1)
        raw = -raw.gather(-1, ids[:, 1:, None])[..., 0]
        assert close(raw, expected) == (prefix == "OPT")

    @classic_only
    @pytest.mark.filterwarnings("ignore")
    def test_a_hooked_transformer_has_them_too(self, tmp_path: Path) -> None:
        from transformer_lens import HookedTransformer, loading

        folder = str(tiny_models.build("llama", tmp_path))
        cfg = loading.get_pretrained_model_config(folder, fold_ln=False, device="cpu")
        state = loading.get_pretrained_state_dict(folder, cfg, None, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        hooked = HookedTransformer(cfg, tokenizer, move_to_device=False)
        hooked.load_and_process_state_dict(state, fold_ln=False)
        model = wrap(hooked)
        ids, mask = right_padded(some_ids(3), [20, 11, 4])
        neurons = torch.zeros(N_LAYERS, model.d_mlp, dtype=torch.bool)
        neurons[:, ::3] = True
        with torch.no_grad():
            for change in (nullcontext(), intervene(model, neurons, deactivate)):
                with change:
                    found = model.losses(ids, mask, rows=9)
                    assert close(found, cross_entropy(model, ids, mask))
            assert close(found[:, :3], load(folder).losses(ids)[:, :3], 1e9)  # one shape
            assert close(model.losses(ids, mask), load(folder).losses(ids, mask))

    def test_no_more_rows_of_logits_than_asked_for_and_none_of_padding(
        self, open_model: Any
    ) -> None:
        model, seen = open_model("llama"), []
        ids, mask = right_padded(some_ids(3), [20, 11, 1])
        with model.hooks([("unembed.hook_out", lambda out, hook: seen.append(out.shape[1]))]):
            model.losses(ids, mask, rows=8)
        assert seen == [8, 8, 8, 5]

    def test_padding_costs_nothing_and_a_single_token_has_no_loss(self, open_model: Any) -> None:
        model = open_model("llama")
        ids, mask = right_padded(some_ids(2), [20, 11])
        losses = model.losses(ids, mask)
        assert torch.equal(losses != 0, mask[:, 1:])
        assert model.losses(ids[:, :1]).shape == (2, 0)
        assert not model.losses(ids[:, :3], mask[:, :3] & (torch.arange(3) < 1)).any()

    def test_short_floats_are_added_up_in_long_ones(self, open_model: Any) -> None:
        model, ids = open_model("llama", dtype=torch.bfloat16), some_ids()
        losses = model.losses(ids, rows=9)
        assert losses.dtype == torch.float32
        assert close(losses.double(), cross_entropy(model, ids), 1e-5)

    def test_gradients_flow(self, open_model: Any) -> None:
        model, ids = open_model("llama"), some_ids()
        size = torch.ones((), requires_grad=True)
        with model.hooks([(model.site(1, "post"), lambda post, hook: post * size)]):
            loss = model.losses(ids, rows=9).sum()
            expected = cross_entropy(model, ids).sum()
        (found,) = torch.autograd.grad(loss, size)
        (slope,) = torch.autograd.grad(expected, size)
        assert abs(slope) > 0.1
        assert abs(found - slope) < 1e-3 * abs(slope)

    def test_the_model_is_whole_again_after_an_error(self, open_model: Any) -> None:
        model, ids = open_model("opt"), some_ids()
        before = model.logits(ids)

        def fail(*args: Any, **settings: Any) -> None:
            raise RuntimeError

        with model.hooks([("unembed.hook_in", fail)]), pytest.raises(RuntimeError):
            model.losses(ids)
        assert torch.equal(model.logits(ids), before)
        body = model.bridge.original_model.base_model
        assert "forward" not in {**vars(body), **vars(body.decoder)}

    def test_layers_may_be_elsewhere(self, tmp_path: Path) -> None:
        parts = ("embed_tokens", "norm", "rotary_emb", "layers.0", "layers.2")
        places = {"lm_head": "cpu"} | {f"model.{part}": "cpu" for part in parts}
        places["model.layers.1"] = "disk"
        folder, ids = tiny_models.build("llama", tmp_path / "model"), some_ids()
        model = load(folder, device_map=places, offload_folder=str(tmp_path / "off"))
        assert model.offloaded
        body = model.bridge.original_model.base_model
        body.forward = moved = body.forward  # as when the body itself is to be moved
        with torch.no_grad():
            for _ in range(2):
                assert close(model.losses(ids, rows=9), cross_entropy(load(folder), ids))
        assert body.forward is moved

    def test_impossible_requests_are_refused(self, open_model: Any) -> None:
        model = open_model("llama")
        with pytest.raises(ValueError, match="rows is 0"):
            model.losses(some_ids(), rows=0)
        left = right_padded(some_ids(), [20, 11])[1].flip(1)
        with pytest.raises(ValueError, match="padding on the right"):
            model.losses(some_ids(), left)


# ---------------------------------------------------------------- the matrix, by its definition


def slow(model: NeuronModel, text: Corpora, neurons: Tensor | None) -> Tensor:
    """Nats [shard read]: plain Hugging Face, one row at a time, all logits, a plain hook."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(model.name)

    def silence(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any) -> Any:
            return (args[0] * (~neurons[layer]),)

        return hook

    if neurons is not None:
        for layer, block in enumerate(hf.model.layers):
            block.mlp.down_proj.register_forward_pre_hook(silence(layer))
    nats = torch.zeros(text.n_shards, len(text.languages), dtype=torch.float64)
    for read, code in enumerate(text.languages):
        rows = text.rows[code]
        for ids, length, shard in zip(rows.ids, rows.length, rows.shard, strict=True):
            ids = ids[:length].long()
            with torch.no_grad():
                log_probability = hf(ids[None]).logits[0].double().log_softmax(dim=-1)
            for place in range(1, len(ids)):
                if int(ids[place]) not in model.special_ids:
                    nats[shard, read] -= log_probability[place - 1, ids[place]]
    return nats


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "documents", "sentences"])
def test_the_matrix_is_that_of_the_definition(
    kind: str, model: NeuronModel, request: pytest.FixtureRequest
) -> None:
    corpora = request.getfixturevalue(kind)
    selection = some_neurons(model)
    matrix = matrix_of(model, selection, corpora)
    for off, neurons in enumerate([None, *selection.mask][:3]):
        expected = slow(model, corpora, neurons)
        assert torch.allclose(matrix.losses.nats[:, off], expected, rtol=1e-5)
    assert matrix.increase.value.abs().amax(dim=1).min() > 0.05
    assert matrix.off == matrix.languages == LANGUAGES
    loss = matrix.losses.loss
    assert torch.allclose(matrix.increase.value, loss[1:] - loss[0])
    assert torch.equal(matrix.losses.perplexity, loss.exp())


@pytest.mark.slow
def test_special_tokens_and_what_has_no_token_before_it_do_not_count(
    model, text, documents, sentences
):
    def counted(corpora: Corpora, read: int) -> int:
        return int(losses_under(model, corpora, {"": None}, progress=False).tokens[:, read].sum())

    every = torch.cat([rows.ids for rows in documents.rows.values()])
    assert (every[:, 1:] == tiny_models.BOS).any()
    for read, code in enumerate(LANGUAGES):
        lengths = sentences.rows[code].length
        assert counted(text, read) == text.tokens()[code]  # all of it, led by <bos>
        assert counted(sentences, read) == int((lengths - 1).sum())
        ids = documents.rows[code].ids
        assert counted(documents, read) == int((ids[:, 1:] != tiny_models.BOS).sum())


def test_bytes_are_those_of_the_text_that_is_predicted(model, sentences):
    losses = losses_under(model, sentences, {NOTHING: None}, progress=False)
    for read, code in enumerate(LANGUAGES):
        rows = sentences.rows[code]
        texts = [model.decode(ids[1:n]) for ids, n in zip(rows.ids, rows.length, strict=True)]
        assert int(losses.bytes[:, read].sum()) == sum(len(each.encode()) for each in texts)
    bits = losses.nats.sum(dim=0) / math.log(2) / losses.bytes.sum(dim=0)
    assert torch.equal(losses.bits_per_byte, bits)


def test_of_a_row_what_counts_and_has_a_token_before_it_is_measured(model):
    """Two tokens here: the `e`, and the first of the four bytes of a character, which is one."""
    a, e, fragment = *model.encode("ae"), model.encode("🙂")[0]
    row = [a, tiny_models.BOS, e, fragment, tiny_models.EOS]
    found = losses_under(model, corpora_of({"en": [row] * 2}), {NOTHING: None}, progress=False)
    with torch.no_grad():
        nats = cross_entropy(model, torch.tensor([row]))[0]
    assert nats.min() > 0.1  # so that each is missed, or seen to be too much
    assert found.nats.flatten().tolist() == pytest.approx([nats[1:3].sum().item()] * 2, rel=1e-5)
    assert found.tokens.tolist() == found.bytes.tolist() == [[2], [2]]


@pytest.mark.slow
def test_a_character_cut_in_two_is_two_bytes_wrong_at_most(model):
    ids = model.encode("ж中🙂e")  # the tiny tokenizer has one token per byte
    for start, stop in itertools.combinations(range(len(ids) + 1), 2):
        if stop - start > 1:
            text = corpora_of({"en": [ids[start:stop]] * 2})
            found = losses_under(model, text, {NOTHING: None}, progress=False)
            assert abs(int(found.bytes[0, 0]) - (stop - start - 1)) <= 2
    whole = corpora_of({"en": [[tiny_models.BOS, *ids]] * 2})
    assert int(losses_under(model, whole, {NOTHING: None}, progress=False).bytes[0, 0]) == len(ids)


@pytest.mark.slow
def test_batches_make_no_difference(model, sentences):
    together = matrix_of(model, some_neurons(model), sentences)
    for tokens_per_batch in (1, 50):
        apart = matrix_of(model, some_neurons(model), sentences, tokens_per_batch=tokens_per_batch)
        assert torch.allclose(apart.losses.nats, together.losses.nats, rtol=1e-6)
        assert torch.equal(apart.losses.tokens, together.losses.tokens)
        assert torch.equal(apart.losses.bytes, together.losses.bytes)


@pytest.mark.slow
def test_relabeled_languages_relabel_the_results(model, text):
    selection, order = some_neurons(model), [2, 0, 1]
    codes = tuple(LANGUAGES[place] for place in order)
    matrix = matrix_of(model, selection, text)
    other = matrix_of(model, selection.languages_only(codes), text.languages_only(codes))
    assert torch.equal(other.losses.nats[:, 1:], matrix.losses.nats[:, 1:][:, order][..., order])
    one, same = matrix.diagonal(), other.diagonal()
    assert torch.allclose(same.own_minus_others.value, one.own_minus_others.value[order])
    assert same.test.p_value == one.test.p_value


@pytest.mark.slow
def test_other_languages_may_be_read_than_those_that_are_turned_off(model, text):
    selection = some_neurons(model)
    whole = matrix_of(model, selection, text)
    part = matrix_of(
        model, selection.languages_only(["fr", "de"]), text.languages_only(["en", "de"])
    )
    assert (part.off, part.languages) == (("fr", "de"), ("en", "de"))
    assert torch.equal(part.losses.nats, whole.losses.nats[:, [0, 3, 1]][..., [1, 0]])
    with pytest.raises(ValueError, match=r"and were read, not 1 \(de\)\."):
        part.diagonal()


# ---------------------------------------------------------------- planted neurons


def corpora_of(rows: dict[str, list[list[int]]], n_shards: int = 2) -> Corpora:
    """Rows dealt out to the shards in turn."""
    made = {}
    for code, lists in rows.items():
        width = max(map(len, lists))
        made[code] = Rows(
            torch.tensor([ids + [0] * (width - len(ids)) for ids in lists], dtype=torch.int32),
            torch.tensor([len(ids) for ids in lists]),
            torch.arange(len(lists)) % n_shards,
            tuple(f"{code}:{number}" for number in range(len(lists))),
        )
    return Corpora(made, tuple(rows), n_shards, (0, 1, 2, 3), False)


FIRST, SECOND = range(4, 104), range(104, 204)
"""Tokens of the two languages of the planted model."""

CARRIES = {"en": (1, 5), "fr": (2, 7)}
"""Layer and number of the neuron that makes the language's tokens likely."""

DECOYS = {"en": (1, 9), "fr": (2, 11)}
"""One fires for English alone, and nothing reads it; one raises all logits alike."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    """Two neurons carry all that it knows: what language the last token was in."""
    folder = tiny_models.build("llama", tmp_path_factory.mktemp("planted"))
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        embedding, head = hf.model.embed_tokens.weight, hf.lm_head.weight
        embedding[:, 2] = 1
        embedding[list(FIRST), 0] = 1
        embedding[list(SECOND), 1] = 1
        first = torch.tensor([1.0, -1.0, 0.0])
        for place, reads, write in (
            (CARRIES["en"], first, (3, 0.03)),
            (CARRIES["fr"], -first, (4, 0.03)),
            (DECOYS["en"], first, (5, 0.003)),
            (DECOYS["fr"], torch.tensor([0.0, 0.0, 1.0]), (6, 0.003)),
        ):
            layer, neuron = place
            mlp = hf.model.layers[layer].mlp
            mlp.gate_proj.weight[neuron, :3] = reads
            mlp.up_proj.weight[neuron, 2] = 1
            mlp.down_proj.weight[write[0], neuron] = write[1]
        head[list(FIRST), 3] = 0.5
        head[list(SECOND), 4] = 0.5
        head[:, 6] = 1
    hf.save_pretrained(folder)
    return load(folder)


@pytest.fixture(scope="module")
def two_languages() -> Corpora:
    generator = torch.Generator().manual_seed(0)

    def rows(tokens: range) -> list[list[int]]:
        sizes = torch.randint(5, 20, (40,), generator=generator).tolist()
        return [
            torch.randint(tokens.start, tokens.stop, (n,), generator=generator).tolist()
            for n in sizes
        ]

    return corpora_of({"en": rows(FIRST), "fr": rows(SECOND)}, n_shards=10)


def selection_of(places: dict[str, tuple[int, int]]) -> NeuronSelection:
    codes = ("en", "fr")
    triples = [(row, *places[code]) for row, code in enumerate(codes) if code in places]
    return NeuronSelection.from_triples(triples, codes, N_LAYERS, tiny_models.D_MLP)


@pytest.mark.slow
def test_planted_neurons_are_seen_and_decoys_are_not(planted, two_languages):
    found = matrix_of(planted, selection_of(CARRIES), two_languages, n_draws=2)
    increase = found.increase
    assert (increase.low.diagonal() > 0.5).all()
    assert increase.value.flip(1).diagonal().abs().max() < 0.02
    assert found.control.value.abs().max() < 0.02
    assert torch.allclose(found.excess.value, increase.value - found.control.value)
    assert (found.losses.loss[1:].diagonal() - math.log(N_VOCAB)).abs().max() < 0.02  # guesses
    diagonal = found.diagonal()
    assert diagonal.largest_in_row == diagonal.largest_in_column == ("en", "fr")
    assert diagonal.mean.low > 0.5
    decoys = matrix_of(planted, selection_of(DECOYS), two_languages)
    assert decoys.losses.nats[:, 1:].ne(decoys.losses.nats[:, :1]).any()  # they were turned off
    assert decoys.increase.value.abs().max() < 0.02


@pytest.mark.slow
def test_a_language_without_neurons_changes_nothing_and_is_named(planted, two_languages):
    only = selection_of({"fr": CARRIES["fr"]})
    with pytest.warns(UserWarning, match="no neurons for en: those rows are exactly zero"):
        found = matrix_of(planted, only, two_languages, n_draws=1)
    assert found.neurons == (0, 1)
    for estimate in (found.increase, found.control, found.excess):
        for part in (estimate.value, estimate.low, estimate.high):
            assert not part[0].any()
    assert found.increase.value[1, 1] > 0.5
    with pytest.raises(ValueError, match=r"and were read, not 1 \(fr\)\."):
        found.diagonal()
    assert found.table().endswith("that have neurons and were read, not 1 (fr).")


# ---------------------------------------------------------------- controls, edits, other contexts


@pytest.mark.slow
def test_the_control_is_matched_clear_of_the_selection_and_seeded(model, text, monkeypatch):
    selection, seen = some_neurons(model), []

    def spy(model: NeuronModel, under: Mapping[str, Any]) -> Any:
        seen.extend(change.units for change in under.values() if change is not None)
        return check_under(model, under)

    monkeypatch.setattr("interp.evaluations.perplexity.check_under", spy)
    one = matrix_of(model, selection, text, n_draws=2)
    drawn = torch.stack(seen[3:9]).view(2, 3, *selection.mask.shape[1:])
    assert torch.equal(drawn.sum(dim=-1)[0], selection.mask.sum(dim=-1))
    assert torch.equal(drawn.sum(dim=-1)[1], selection.mask.sum(dim=-1))
    assert not (drawn & selection.union()).any()
    assert one.random.shape == (3, 2, 3, 3)
    for draw in range(2):
        expected = slow(model, text, drawn[draw, 1])
        assert torch.allclose(one.random[:, draw, 1], expected, rtol=1e-5)
    assert torch.allclose(one.control.value, one.random_increase.value.mean(dim=0))
    seeds = (0, 0, 1)
    same, again, other = (
        matrix_of(model, selection, text, n_draws=1, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    )
    assert torch.equal(same.random, again.random)
    assert torch.equal(same.random, one.random[:, :1])
    assert not torch.equal(same.random, other.random)
    assert torch.equal(same.losses.nats, other.losses.nats)


@pytest.mark.slow
def test_neurons_that_fire_alike_are_a_control_beside_the_random_ones(model, text, tmp_path):
    selection = some_neurons(model)
    rate = torch.rand(selection.mask.shape, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(0)
    found = matrix_of(model, selection, text, n_draws=1, rate=rate, generator=generator)
    generator, exclude = torch.Generator().manual_seed(0), selection.union()
    layers_alone = selection.random_like(generator, exclude)
    alike = selection.random_like(generator, exclude, rate)
    for row, code in enumerate(LANGUAGES):
        expected = slow(model, text, alike[code])
        assert found.rate_matched is not None
        assert torch.allclose(found.rate_matched[:, row], expected, rtol=1e-5)
        assert torch.allclose(found.random[:, 0, row], slow(model, text, layers_alone[code]))
    apart = found.increase.value - found.rate_control.value
    assert torch.allclose(found.rate_excess.value, apart, atol=1e-9)
    assert apart.abs().max() > 1e-4
    found.save(tmp_path / "matrix.safetensors")
    again = PerplexityMatrix.load(tmp_path / "matrix.safetensors")
    assert same(again, found)
    assert again.to_frame()["rate_matched"].equals(found.to_frame()["rate_matched"])
    assert "alike" in found.table()
    without = matrix_of(model, selection, text, n_draws=1)
    assert torch.equal(without.random, found.random)
    assert without.rate_control.value.isnan().all()
    assert "rate_matched" not in without.to_frame()
    assert "alike" not in without.table()


def test_no_draws_leave_the_control_open(model, text):
    found = matrix_of(model, some_neurons(model), text)
    assert found.random.shape == (3, 0, 3, 3)
    assert found.control.value.isnan().all()
    assert found.excess.low.isnan().all()
    assert found.to_frame()["random"].isna().all()


@pytest.mark.slow
def test_an_edit_may_be_one_for_all_or_one_for_each_language(model, text):
    selection = some_neurons(model)
    values = [torch.full((N_LAYERS, model.d_mlp), float(row)) for row in range(3)]
    edits = {code: override(each) for code, each in zip(LANGUAGES, values, strict=True)}
    mixed = matrix_of(model, selection, text, edit=edits)
    for row, code in enumerate(LANGUAGES):
        alone = matrix_of(model, selection, text, edit=edits[code]).losses.nats
        assert torch.equal(mixed.losses.nats[:, row + 1], alone[:, row + 1])
        assert not torch.equal(alone[:, 1 + (row + 1) % 3], mixed.losses.nats[:, 1 + (row + 1) % 3])
    unchanged = matrix_of(model, selection, text, edit=scale(1.0))
    assert unchanged.increase.value.abs().max() < 1e-6
    assert unchanged.edit == ("scale by 1",) * 3
    with pytest.raises(ValueError, match="no edit for en: give one for every language"):
        matrix_of(model, selection, text, edit={"de": deactivate, "fr": deactivate})


@pytest.mark.slow
def test_several_changes_can_be_one_intervention_and_text_under_none_is_read_once(
    model, text, monkeypatch
):
    selection, n_passes = some_neurons(model), [0]
    change, half = selection.change("fr", deactivate), selection.change("en", scale(0.5))
    read = NeuronModel.losses

    def counted(self: NeuronModel, *args: Any) -> Tensor:
        n_passes[0] += 1
        return read(self, *args)

    monkeypatch.setattr(NeuronModel, "losses", counted)  # on the model it would outlive this test
    under = {"off": change, "plain": None, "both": [half, change], "again": ()}
    found = losses_under(model, text, under, progress=False)
    passes, n_passes[0] = n_passes[0], 0
    losses_under(model, text, {"plain": None}, progress=False)
    assert passes == 3 * n_passes[0]
    matrix = matrix_of(model, some_neurons(model), text)
    assert found.interventions == ("off", "plain", "both", "again")
    assert torch.equal(found.nats[:, 0], matrix.losses.nats[:, 3])
    assert torch.equal(found.nats[:, 1], found.nats[:, 3])
    with intervene(model, selection["en"], scale(0.5)):
        nested = losses_under(model, text, {"off": change}, progress=False)
    assert torch.equal(found.nats[:, 2], nested.nats[:, 0])
    assert not torch.equal(found.nats[:, 2], found.nats[:, 0])
    assert not found.increase.value[0].any()  # the first is what others are compared with
    assert torch.allclose(found.increase.value[1], -matrix.increase.value[2])
    frame = found.to_frame()
    assert frame.shape == (12, 10)
    assert frame.loc[3, "increase"] == found.increase.value[1, 0].item()


def test_what_is_no_change_is_refused_by_name(model, text):
    with pytest.raises(ValueError, match="There is no intervention"):
        losses_under(model, text, {}, progress=False)
    unchecked: Any = inspect.unwrap(check_under)  # past the tests' own check of types
    for wrong in (lambda: None, deactivate, "de", [deactivate], [None]):
        with pytest.raises(ValueError, match=r"'off' is .*: give an interp.Change"):
            unchecked(model, {"off": wrong})
    small = Change(torch.ones(1, 2, dtype=torch.bool), deactivate)
    with pytest.raises(ValueError, match="the mask at post has shape"):
        losses_under(model, text, {"off": small}, progress=False)


def test_losses_resume_and_refuse_other_changes(model, text, tmp_path):
    selection = some_neurons(model)
    under = {"nothing": None, "off": selection.change("fr", deactivate)}
    found = losses_under(model, text, under, out=tmp_path, progress=False)
    assert torch.equal(Losses.load(tmp_path / "losses.safetensors").nats, found.nats)
    pieces = sorted(tmp_path.glob("pieces/*"))
    kept = [path.stat().st_mtime_ns for path in pieces[1:]]
    pieces[0].unlink()
    again = losses_under(model, text, under, out=tmp_path, progress=False)
    assert torch.equal(again.nats, found.nats)
    assert [path.stat().st_mtime_ns for path in pieces[1:]] == kept
    other = {"nothing": None, "off": selection.change("de", deactivate)}
    with pytest.raises(ValueError, match="was started with another under"):
        losses_under(model, text, other, out=tmp_path, progress=False)


# ---------------------------------------------------------------- statistics


def made_matrix(
    increase: Tensor, noise: float = 0.0, n_shards: int = 4, seed: int = 0
) -> PerplexityMatrix:
    """A matrix in which the true increase is known, and text varies much more than that."""
    n = len(increase)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((n_shards, n), 1000)
    base = 3 + torch.randn(n_shards, 1, n, generator=generator, dtype=torch.float64)
    change = torch.cat([torch.zeros(1, n), increase]).double().expand(n_shards, -1, -1).clone()
    change[:, 1:] += noise * torch.randn(n_shards, n, n, generator=generator)
    codes = tuple(f"l{number}" for number in range(n))
    return PerplexityMatrix(
        losses=Losses(
            nats=1000 * (base + change),
            tokens=tokens,
            bytes=4 * tokens,
            interventions=(NOTHING, *codes),
            languages=codes,
        ),
        random=torch.zeros(n_shards, 0, n, n, dtype=torch.float64),
        neurons=(1,) * n,
        edit=("deactivate",) * n,
    )


def test_intervals_are_of_the_difference_and_hold_the_truth():
    truth, held, widths = torch.full((2, 2), 0.1), [], []
    for seed in range(200):
        increase = made_matrix(truth, noise=0.02, n_shards=10, seed=seed).increase
        held.append((increase.low <= truth) & (truth <= increase.high))
        widths.append(increase.high - increase.low)
    assert 0.93 < torch.stack(held).double().mean() < 0.97
    assert torch.stack(widths).mean() < 0.05  # the losses themselves vary by 1 nat


def test_neurons_that_fire_alike_are_compared_with_nothing_off_and_subtracted():
    increase = torch.tensor([[0.5, 0.1], [0.2, 0.6]]).double()
    made = made_matrix(increase)
    alike = made.losses.nats[:, :1] + 1000 * torch.tensor([[0.1, 0.3], [0.0, 0.2]])
    found = replace(made, rate_matched=alike)
    expected = torch.tensor([[0.1, 0.3], [0.0, 0.2]]).double()
    torch.testing.assert_close(found.rate_control.value, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.rate_excess.value, increase - expected, atol=1e-6, rtol=0)


def test_shards_weigh_by_their_tokens():
    nats = torch.tensor([[[10.0], [20.0]], [[10.0], [40.0]]]).double()
    found = Losses(
        nats=nats,
        tokens=torch.tensor([[10], [30]]),
        bytes=torch.tensor([[1], [1]]),
        interventions=("a", "b"),
        languages=("en",),
    )
    assert found.loss.tolist() == [[0.5], [1.5]]
    assert found.increase.value.tolist() == [[0.0], [1.0]]
    assert found.bits_per_byte[0, 0].item() == 10 / math.log(2)


def by_hand(square: list[list[float]], order: tuple[int, ...]) -> list[float]:
    """Own minus the mean of the others, for each row, where `order` says what is whose."""
    others = [
        [each for place, each in enumerate(row) if place != own]
        for row, own in zip(square, order, strict=True)
    ]
    return [
        row[own] - statistics.fmean(rest)
        for row, own, rest in zip(square, order, others, strict=True)
    ]


def test_the_permutation_test_is_that_of_the_definition(generator):
    for n in (2, 3, 4):
        square = torch.randn(n, n, generator=generator).double()
        found = made_matrix(square).diagonal()
        orders = list(itertools.permutations(range(n)))
        rows = by_hand(square.tolist(), orders[0])
        assert found.own_minus_others.value.tolist() == pytest.approx(rows)
        every = [statistics.fmean(by_hand(square.tolist(), order)) for order in orders]
        assert found.test.statistic == pytest.approx(every[0])
        assert found.mean.value.item() == pytest.approx(every[0])
        extreme = sum(abs(each) >= abs(every[0]) - 1e-9 for each in every)
        assert found.test.p_value == pytest.approx(extreme / len(orders))
        assert (found.test.n_arrangements, found.test.exact) == (len(orders), True)


@pytest.mark.slow
def test_chance_gives_any_p_value_and_a_diagonal_a_small_one(generator):
    p_values = torch.tensor(
        [
            made_matrix(torch.randn(5, 5, generator=generator)).diagonal().test.p_value
            for _ in range(200)
        ]
    )
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        share = (p_values <= level + 1e-9).double().mean()
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / 200)
    strong = made_matrix(torch.eye(5) + 0.2 * torch.randn(5, 5, generator=generator)).diagonal()
    assert strong.test.p_value == strong.test.smallest_p == 1 / 120
    assert strong.largest_in_row == strong.largest_in_column == strong.languages


def test_strong_sets_and_weak_languages_are_no_diagonal(generator):
    rows, columns = torch.rand(5, 1, generator=generator), torch.rand(1, 5, generator=generator)
    found = made_matrix(10 * rows.double() + columns).diagonal()
    assert abs(found.test.statistic) < 1e-9
    assert found.test.p_value == 1
    row, column = int(rows.argmax()), int(columns.argmax())
    assert found.largest_in_row == (f"l{column}",)
    assert found.largest_in_column == (f"l{row}",)
    tie = made_matrix(torch.zeros(3, 3)).diagonal()
    assert (tie.test.p_value, tie.largest_in_row, tie.largest_in_column) == (1, (), ())


def test_many_languages_are_relabeled_at_random(generator):
    noise = torch.randn(8, 8, generator=generator)
    clear = made_matrix(torch.eye(8) + 0.1 * noise).diagonal().test
    assert (clear.exact, clear.n_arrangements, clear.p_value) == (False, 10_000, 1e-4)
    matrix = made_matrix(noise)
    one, same, other = (
        matrix.diagonal(torch.Generator().manual_seed(seed)).test.p_value for seed in (0, 0, 1)
    )
    assert one == same != other
    assert abs(one - other) < 0.03
    assert matrix.diagonal().test.p_value == one


# ---------------------------------------------------------------- files


@pytest.mark.slow
def test_frames_and_files_hold_what_was_measured(planted, two_languages, tmp_path):
    found = matrix_of(planted, selection_of(CARRIES), two_languages, n_draws=2)
    frame = found.to_frame()
    assert list(frame["off"]) == [NOTHING, NOTHING, "en", "en", "fr", "fr"]
    assert list(frame["read"]) == ["en", "fr"] * 3
    assert list(frame["own"]) == [False, False, True, False, False, True]
    assert list(frame["neurons"]) == [0, 0, 1, 1, 1, 1]
    cell = frame[(frame["off"] == "fr") & (frame["read"] == "en")].iloc[0]
    assert cell["loss"] == found.losses.loss[2, 0].item()
    assert cell["increase_high"] == found.increase.high[1, 0].item()
    assert cell["random_low"] == found.control.low[1, 0].item()
    assert cell["excess"] == found.excess.value[1, 0].item()
    assert cell["tokens"] == int(found.losses.tokens[:, 0].sum())
    found.save(tmp_path / "matrix.safetensors", {"why": "a test"})
    assert same(PerplexityMatrix.load(tmp_path / "matrix.safetensors"), found)
    found.losses.save(tmp_path / "losses.safetensors")
    again = Losses.load(tmp_path / "losses.safetensors")
    assert torch.equal(again.nats, found.losses.nats)
    assert again.interventions == found.losses.interventions
    with pytest.raises(ValueError, match="holds a Losses, not a PerplexityMatrix"):
        PerplexityMatrix.load(tmp_path / "losses.safetensors")


def same(a: PerplexityMatrix, b: PerplexityMatrix) -> bool:
    tensors = [(getattr(a.losses, key), getattr(b.losses, key)) for key in ("nats", "tokens")]
    tensors += [(a.losses.bytes, b.losses.bytes), (a.random, b.random)]
    tensors += [] if a.rate_matched is None else [(a.rate_matched, b.rate_matched)]
    assert all(torch.equal(one, other) for one, other in tensors)
    assert (a.off, a.languages, a.neurons, a.edit) == (b.off, b.languages, b.neurons, b.edit)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("survives", [0, 13])
def test_an_interrupted_run_goes_on_and_leaves_the_same_bytes(
    survives: int, model: NeuronModel, text: Corpora, tmp_path: Path, monkeypatch: Any
) -> None:
    selection, text = (
        some_neurons(model).languages_only(["fr", "de"]),
        text.languages_only(["de", "en"]),
    )
    losses, reads = NeuronModel.losses, []

    def killed(self: NeuronModel, *args: Any) -> Tensor:
        reads.append(1)
        if len(reads) > survives:
            raise KeyboardInterrupt
        return losses(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(NeuronModel, "losses", killed)
        with pytest.raises(KeyboardInterrupt):
            matrix_of(model, selection, text, n_draws=1, out=tmp_path / "killed")
    finished = len(list((tmp_path / "killed").glob("pieces/*")))
    assert finished == survives // 5  # one read under each of 5 interventions makes a piece
    reads.clear()
    with monkeypatch.context() as patch:
        patch.setattr(NeuronModel, "losses", lambda *args: (reads.append(1), losses(*args))[1])
        found = matrix_of(model, selection, text, n_draws=1, out=tmp_path / "killed")
    assert len(reads) == 5 * (6 - finished)
    straight = matrix_of(model, selection, text, n_draws=1, out=tmp_path / "straight")
    assert files(tmp_path / "killed") == files(tmp_path / "straight")
    assert same(found, straight)
    assert same(PerplexityMatrix.load(tmp_path / "killed" / "matrix.safetensors"), found)
    assert same(matrix_of(model, selection, text, n_draws=1), found)  # without a folder


@pytest.mark.slow
def test_a_folder_takes_only_what_it_was_started_with(model, open_model, text, tmp_path):
    selection = some_neurons(model)

    def run(used: NeuronModel = model, chosen=selection, corpora=text, **options: Any) -> None:
        matrix_of(used, chosen, corpora, **{"out": tmp_path, "n_draws": 1} | options)

    run()
    before = files(tmp_path)
    mask = selection.mask.clone()
    mask[0, 0, :2] = ~mask[0, 0, :2]
    shifted = (override(torch.full((N_LAYERS, model.d_mlp), value)) for value in (0.0, 1.0))
    for change, what in (
        ({"used": open_model("llama")}, "another model"),
        ({"chosen": NeuronSelection(mask, LANGUAGES)}, r"another under \(under: de units"),
        ({"corpora": text.languages_only(["de", "en"])}, "another corpora, languages read"),
        ({"edit": scale(0.5)}, r"another under .*edit factor was 0\.0, now 0\.5"),
        ({"edit": next(shifted)}, "another under .*override"),
        ({"n_draws": 0}, r"another under .*random \d"),
        ({"generator": torch.Generator().manual_seed(1)}, r"another under .*random \d"),
        ({"tokens_per_batch": 99}, "another tokens_per_batch"),
    ):
        with pytest.raises(ValueError, match=f"was started with {what}"):
            run(**change)
    assert files(tmp_path) == before
    (tmp_path / "pieces" / "0002-en.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="only this piece is read again"):
        run()
    (tmp_path / "pieces" / "0002-en.safetensors").unlink()
    run()
    assert files(tmp_path) == before
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        run()


# ---------------------------------------------------------------- at the door


def test_what_does_not_fit_is_refused_before_anything_is_read(
    model, open_model, text, tmp_path, monkeypatch
):
    def never(*args: Any) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(NeuronModel, "losses", never)
    selection = some_neurons(model)
    wrong = {
        "use the model it was made with": (open_model("bloom"), selection, text, {}),
        "n_draws is -1": (model, selection, text, {"n_draws": -1}),
        "2 shards or more": (model, selection, corpora_of({"en": [[5, 6]]}, 1), {}),
        "has 274 tokens": (model, selection, corpora_of({"en": [[5, 999]] * 2}), {}),
        "takes at most 64: read the text in shorter": (
            model,
            selection,
            corpora_of({"en": [[5] * 70] * 2}),
            {},
        ),
        "No token of en can be predicted": (model, selection, corpora_of({"en": [[5]] * 2}), {}),
        "are left to draw from": (
            model,
            NeuronSelection(torch.ones(1, N_LAYERS, model.d_mlp).bool(), ("en",)),
            text,
            {"n_draws": 1},
        ),
    }
    for words, (used, chosen, corpora, options) in wrong.items():
        with pytest.raises(ValueError, match=words):
            matrix_of(used, chosen, corpora, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_without_tokenizer_is_told_to_bring_one(tmp_path, text):
    model = load(tiny_models.build("qwen2", tmp_path))
    bare = NeuronModel(model.bridge, None, "bare", "native", {})
    with pytest.raises(ValueError, match="bare has no tokenizer to count bytes with"):
        matrix_of(bare, some_neurons(model), text)


def test_a_loss_that_is_no_number_is_an_error_that_says_where(tmp_path, text):
    model = load(tiny_models.build("qwen2", tmp_path))
    selection = some_neurons(model)
    strong = override(torch.full((N_LAYERS, model.d_mlp), 3e38))
    with pytest.raises(ValueError, match=r"\(de, shard 0\) with 'de': .* edit too strong"):
        matrix_of(model, selection, text, edit=strong)
    with torch.no_grad():
        model.w_out(1)[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinite loss on .*with 'nothing'"):
        matrix_of(model, selection, text, out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "run.json"]


def test_results_that_do_not_fit_together_are_refused():
    losses = made_matrix(torch.eye(2)).losses
    with pytest.raises(ValueError, match="3 interventions and 2 languages, but 3 and 1 names"):
        Losses(
            nats=losses.nats,
            tokens=losses.tokens,
            bytes=losses.bytes,
            interventions=losses.interventions,
            languages=("l0",),
        )
    broken = losses.nats.clone()
    broken[1, 2, 0] = math.inf
    with pytest.raises(ValueError, match="shard 1 of l0 with l1 is inf"):
        Losses(
            nats=broken,
            tokens=losses.tokens,
            bytes=losses.bytes,
            interventions=losses.interventions,
            languages=losses.languages,
        )
    with pytest.raises(ValueError, match="2 sets of neurons"):
        PerplexityMatrix(
            losses=losses,
            random=torch.zeros(4, 1, 2, 2).double(),
            neurons=(1,),
            edit=("deactivate",),
        )


def test_reading_warns_of_nothing(model, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix_of(model, some_neurons(model), text, progress=True)
