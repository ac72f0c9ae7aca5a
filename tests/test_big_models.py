"""Models that hardly fit: too little memory, narrow types, offloading, packed weights, experts."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import interp
from interp.counting.batch import Batch
from interp.counting.counters import FiringCounter, MomentsCounter
from interp.counting.observe import batches, observe
from interp.models.load import load, wrap
from interp.models.neuron_model import NeuronModel
from interp.text.corpora import Corpora, Rows
from tests import tiny_models
from tests.tiny_models import D_MLP, N_LAYERS

LANGUAGES = ("en", "de")
ROWS, WIDTH, N_SHARDS = 24, 20, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def model(folder: Path) -> NeuronModel:
    return load(folder)


def text(padded: bool = False) -> Corpora:
    generator = torch.Generator().manual_seed(0)
    rows = {
        code: Rows(
            torch.randint(4, 200, (ROWS, WIDTH), generator=generator, dtype=torch.int32),
            torch.randint(3, WIDTH + 1, (ROWS,), generator=generator)
            if padded
            else torch.full((ROWS,), WIDTH),
            torch.arange(ROWS) % N_SHARDS,
            tuple(f"{number}" for number in range(ROWS)),
        )
        for code in LANGUAGES
    }
    return Corpora(rows, LANGUAGES, N_SHARDS, (tiny_models.BOS,), not padded)


@contextmanager
def memory_for(
    model: NeuronModel,
    rows: int,
    layer: int = 1,
    error: Exception | None = None,
) -> Iterator[list[int]]:
    """A machine whose memory runs out in one layer on more rows than this; rows of each pass."""
    passes: list[int] = []

    def run_out(values: Tensor, hook: object) -> None:
        if len(values) > rows:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")

    def count(values: Tensor, hook: object) -> None:
        passes.append(len(values))

    with model.hooks([(model.site(0, "pre"), count), (model.site(layer, "pre"), run_out)]):
        yield passes


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


class TestMemoryRunsOut:
    @pytest.mark.slow
    @pytest.mark.parametrize("layer", range(N_LAYERS))
    @pytest.mark.parametrize("padded", [False, True])
    def test_halved_batches_leave_the_same_bytes(
        self, model: NeuronModel, tmp_path: Path, layer: int, padded: bool
    ) -> None:
        corpora = text(padded)
        keep = interp.Keep(
            signs="gate" if padded else None,
            sentence_means=("pre", "mlp_out") if padded else (),
            contexts=2,
        )
        settings = {"keep": keep, "tokens_per_batch": 240, "progress": False}
        interp.collect(model, corpora, tmp_path / "whole", **settings)
        warned = pytest.warns(UserWarning, match="Out of memory")
        with memory_for(model, 3, layer) as passes, warned:
            interp.collect(model, corpora, tmp_path / "halved", **settings)
        assert max(passes) > 3 >= min(passes)
        assert files(tmp_path / "whole") == files(tmp_path / "halved")

    def test_moments_change_in_the_last_digits_alone(
        self, model: NeuronModel, tmp_path: Path
    ) -> None:
        settings = {"keep": interp.Keep(moments=True), "progress": False}
        interp.collect(model, text(), tmp_path / "whole", **settings)
        with memory_for(model, 3), pytest.warns(UserWarning, match="Out of memory"):
            interp.collect(model, text(), tmp_path / "halved", **settings)
        whole, halved = (interp.Run.open(tmp_path / name).moments for name in ("whole", "halved"))
        assert torch.equal(whole.tokens, halved.tokens)
        torch.testing.assert_close(whole.sums, halved.sums, rtol=1e-5, atol=1e-4)

    def test_an_observer_sees_each_row_once_in_every_layer(self, model: NeuronModel) -> None:
        class Watcher:
            kinds = ("pre", "post")

            def __init__(self) -> None:
                self.seen: list[tuple[str, int, int]] = []

            def update(self, kind: Any, layer: int, values: Tensor, batch: Batch) -> None:
                assert len(values) == len(batch.rows)
                self.seen += [(kind, layer, row) for row in batch.rows]

        watcher = Watcher()
        (batch,) = batches(text(), "en", 0, 10_000)
        with memory_for(model, 2, 2), pytest.warns(UserWarning, match="Out of memory"):
            observe(model, batch, [watcher])
        every = [(kind, layer, row) for kind in ("pre", "post") for layer in range(N_LAYERS)
                 for row in range(ROWS // N_SHARDS)]  # fmt: skip
        assert sorted(watcher.seen) == sorted(every)

    def test_the_size_that_fits_is_found_once(self, model: NeuronModel) -> None:
        rows = list(batches(text(), "en", 0, 10_000))
        counter = FiringCounter(model)
        with memory_for(model, 3) as passes:
            with pytest.warns(UserWarning, match="Out of memory") as told:
                observe(model, rows[0], [counter])
            found = list(passes)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                observe(model, rows[0], [counter])
        assert found == [12, 6, 3, 3, 3, 3]
        assert passes[len(found) :] == [3, 3, 3, 3]
        assert len(told) == 2  # of 12 rows and of 6
        assert model.ran_out_at == 6 * WIDTH

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory."),
            MemoryError(),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            RuntimeError("MPS backend out of memory"),
        ],
    )
    def test_it_is_known_by_its_words_on_other_devices(
        self, model: NeuronModel, error: Exception
    ) -> None:
        (batch,) = batches(text(), "en", 0, 10_000)
        with memory_for(model, 6, error=error), pytest.warns(UserWarning, match="Out of memory"):
            observe(model, batch, [FiringCounter(model)])

    def test_other_errors_are_not_taken_for_it(self, model: NeuronModel) -> None:
        (batch,) = batches(text(), "en", 0, 10_000)
        with (
            memory_for(model, 6, error=RuntimeError("shapes differ")),
            pytest.raises(RuntimeError, match="shapes differ"),
        ):
            observe(model, batch, [FiringCounter(model)])
        assert model.ran_out_at is None

    def test_a_row_that_does_not_fit_is_an_error_with_a_way_out(
        self, model: NeuronModel, tmp_path: Path
    ) -> None:
        with (
            memory_for(model, 0),
            pytest.warns(UserWarning, match="Out of memory"),
            pytest.raises(ValueError, match=r"one row of 20 tokens does not fit.*shard 0 of en"),
        ):
            interp.collect(model, text(), tmp_path, progress=False)


class TestNarrowTypes:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_counts_are_whole_and_sums_are_wide(self, folder: Path, dtype: torch.dtype) -> None:
        narrow = load(folder, dtype=dtype)
        counters = [FiringCounter(narrow), MomentsCounter(narrow)]
        caught: list[Tensor] = []

        def keep(values: Tensor, hook: object) -> None:
            caught.append(values.clone())

        with narrow.hooks([(narrow.site(1, "pre"), keep)]):
            for batch in batches(text(), "en", 0, 100):
                observe(narrow, batch, counters)
        gate = torch.cat(caught).flatten(0, 1)
        assert gate.dtype == dtype
        fired, sums = counters[0].tensors()["firing.fired"], counters[1].tensors()["moments.sums"]
        assert torch.equal(fired[1], (gate > 0).sum(dim=0))
        acted = nn.functional.silu(gate).double()
        assert sums.dtype == torch.float64
        torch.testing.assert_close(sums[0, 1], acted.sum(dim=0), rtol=1e-4, atol=1e-3)


class TestOffloading:
    def test_a_layer_on_disk_gives_the_same_counts(
        self, folder: Path, model: NeuronModel, tmp_path: Path
    ) -> None:
        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
        places |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.2": "cpu"}
        places["model.layers.1"] = "disk"
        away = load(folder, device_map=places, offload_folder=str(tmp_path / "off"))
        assert away.offloaded
        here, there = (
            interp.collect(each, text(), progress=False).firing for each in (model, away)
        )
        assert torch.equal(here.fired, there.fired)
        with pytest.raises(ValueError, match=r"layer 1 .* quantized or offloaded"):
            away.w_in(1)

    def test_counters_are_beside_their_layers(
        self, model: NeuronModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []

        def device(layer: int) -> torch.device:
            asked.append(layer)
            return torch.device("meta") if layer == 1 else torch.device("cpu")

        monkeypatch.setattr(model, "layer_device", device)
        for counter in (FiringCounter(model)._fired, MomentsCounter(model)._sums):
            assert [each.device.type for each in counter] == ["cpu", "meta", "cpu"]
        assert asked == [*range(N_LAYERS), *range(N_LAYERS)]


class Packed(nn.Module):
    """A linear layer whose weights are bytes in a row, as quantization leaves them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.scale = float(weight.abs().max()) / 127
        packed = (weight / self.scale).round().to(torch.int8).flatten()[:, None]
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, values: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        return nn.functional.linear(values, self.weight.reshape(shape) * self.scale, self.bias)


@pytest.fixture
def packed(folder: Path) -> NeuronModel:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, Packed(getattr(layer.mlp, name)))
    model.config.quantization_config = {"quant_method": "test"}
    bridge = build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)
    return wrap(bridge, tiny_models.tokenizer(), name="packed")


class TestQuantized:
    def test_its_neurons_are_counted(self, packed: NeuronModel, model: NeuronModel) -> None:
        assert (packed.n_layers, packed.d_mlp, packed.d_model) == (N_LAYERS, D_MLP, model.d_model)
        ours, theirs = (
            interp.collect(each, text(), progress=False).firing for each in (packed, model)
        )
        assert not torch.equal(ours.fired, theirs.fired)  # eight bits are not the model itself
        assert (ours.rate - theirs.rate).abs().mean() < 0.02

    def test_its_neurons_are_turned_off(self, packed: NeuronModel) -> None:
        ids = torch.randint(4, 200, (2, 10), generator=torch.Generator().manual_seed(0))
        neurons = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
        neurons[:, ::2] = True
        before = packed.logits(ids)
        with interp.intervene(packed, neurons, interp.deactivate):
            assert not torch.allclose(packed.logits(ids), before, atol=1e-2)
        assert torch.equal(packed.logits(ids), before)

    @pytest.mark.parametrize("weight", ["w_in", "w_gate", "w_out"])
    def test_what_must_read_its_weights_is_refused(self, packed: NeuronModel, weight: str) -> None:
        read: Callable[[int], Tensor] = getattr(packed, weight)
        with pytest.raises(ValueError, match=r"layer 0 of packed .* quantized"):
            read(0)


EXPERTS = {
    "Doge": {"num_experts": 4, "is_moe": True, "num_hidden_layers": 2},
    "LongcatFlash": {"n_routed_experts": 4, "num_layers": 2},
}
"""Mixtures whose experts transformers computes by code of their own that is not known here."""


class TestExperts:
    @pytest.mark.parametrize("family", EXPERTS)
    def test_they_are_refused_by_name_before_weights_are_looked_for(
        self, tmp_path: Path, family: str
    ) -> None:
        config = getattr(transformers, f"{family}Config")(**EXPERTS[family])
        config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"{config.model_type}.*a mixture of 4 experts"):
            load(tmp_path)

    def test_a_bridge_around_others_is_opened(self) -> None:
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        config = transformers.MixtralConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=3,
        )
        inside = transformers.MixtralForCausalLM(config)
        bridge = build_bridge_from_module(inside, "MixtralForCausalLM", hf_config=config)
        assert wrap(bridge).d_mlp == 3 * 48
