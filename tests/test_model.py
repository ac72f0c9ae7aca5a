"""Every architecture against plain Hugging Face, hooked with torch and found without the bridge."""

import functools
import importlib.metadata
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from interp.models.any_model import as_model
from interp.models.load import load
from tests import tiny_models
from tests.campaigns import architectures
from tests.tiny_models import CONFIGS, D_MLP, D_MODEL, MAX_LENGTH, N_LAYERS, N_VOCAB

HAS_CLASSIC = importlib.metadata.version("transformer-lens").startswith("3.")
LLAMA = ("model.layers", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LAYOUT = {
    "bloom": ("transformer.h", "mlp.dense_h_to_4h", None, "mlp.dense_4h_to_h"),
    "xglm": ("model.layers", "fc1", None, "fc2"),
    "opt": ("model.decoder.layers", "fc1", None, "fc2"),
    "phi": ("model.layers", "mlp.fc1", None, "mlp.fc2"),
    "phi3": ("model.layers", "mlp.gate_up_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "gpt2": ("transformer.h", "mlp.c_fc", None, "mlp.c_proj"),
    "pythia": ("gpt_neox.layers", "mlp.dense_h_to_4h", None, "mlp.dense_4h_to_h"),
}
GATED = {name for name in CONFIGS if LAYOUT.get(name, LLAMA)[2]}
FUSED = {"llama", "llama_mha", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "opt"} | {
    "phi",
    "phi3",
    "gpt2",
    "pythia",
}

every_architecture = pytest.mark.parametrize("name", CONFIGS)
classic_only = pytest.mark.skipif(not HAS_CLASSIC, reason="HookedTransformer left with 4.0")


@dataclass
class Reference:
    """A plain Hugging Face model, and torch hooks on its MLPs."""

    name: str
    hf: Any
    pre: list[Tensor] = field(default_factory=list)
    pre_linear: list[Tensor] = field(default_factory=list)
    post: list[Tensor] = field(default_factory=list)

    def modules(self, part: int) -> list[nn.Module]:
        blocks, *parts = LAYOUT.get(self.name, LLAMA)
        return [block.get_submodule(parts[part]) for block in self.hf.get_submodule(blocks)]

    def run(self, ids: Tensor, **settings: Any) -> Tensor:
        """Logits; activations are kept in `pre`, `pre_linear` and `post`, one per layer."""
        shape = ids.shape
        self.pre, self.pre_linear, self.post = [], [], []

        def keep_pre(module: nn.Module, args: Any, output: Tensor) -> None:
            output = output.reshape(*shape, -1)
            if self.name == "phi3":  # one matrix, gate first
                output, value = output.chunk(2, dim=-1)
                self.pre_linear.append(value)
            self.pre.append(output)

        def keep_linear(module: nn.Module, args: Any, output: Tensor) -> None:
            self.pre_linear.append(output.reshape(*shape, -1))

        def keep_post(module: nn.Module, args: Any) -> None:
            self.post.append(args[0].reshape(*shape, -1))

        handles = [each.register_forward_hook(keep_pre) for each in self.modules(0)]
        if self.name in GATED - {"phi3"}:
            handles += [each.register_forward_hook(keep_linear) for each in self.modules(1)]
        handles += [each.register_forward_pre_hook(keep_post) for each in self.modules(2)]
        with torch.no_grad():
            logits = self.hf(ids, use_cache=False, **settings).logits
        for handle in handles:
            handle.remove()
        return logits

    @contextmanager
    def off(self, layers: list[int], neurons: Tensor) -> Iterator[None]:
        def silence(module: nn.Module, args: Any) -> Any:
            return (args[0].index_fill(-1, neurons, 0.0),)

        chosen = [self.modules(2)[layer] for layer in layers]
        handles = [each.register_forward_pre_hook(silence) for each in chosen]
        yield
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def build(name: str) -> Path:
        return tiny_models.build(name, tmp_path_factory.mktemp("tiny"))

    return build


@pytest.fixture(scope="session")
def open_model(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    from interp.models.load import load

    @functools.cache
    def open_once(name: str, **options: Any) -> Any:
        return load(checkpoint(name), **options)

    return open_once


@pytest.fixture(scope="session")
def plain(checkpoint: Callable[[str], Path]) -> Callable[..., Reference]:
    @functools.cache
    def open_once(name: str, **options: Any) -> Reference:
        hf = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(name), **options)
        return Reference(name, hf)

    return open_once


@pytest.fixture
def classic(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """A HookedTransformer of the tiny llama, as TransformerLens 3.9 makes it."""

    def build(**processing: bool) -> Any:
        from transformer_lens import HookedTransformer, loading

        folder = str(checkpoint("llama"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces its own removal
            cfg = loading.get_pretrained_model_config(
                folder, fold_ln=processing.get("fold_ln", False), device="cpu"
            )
            state = loading.get_pretrained_state_dict(folder, cfg, None, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            model = HookedTransformer(cfg, tokenizer, move_to_device=False)
            off = dict.fromkeys(
                ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False
            )
            model.load_and_process_state_dict(state, **{**off, **processing})
        return model

    return build


def some_ids(batch: int = 2, length: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(tiny_models.SPECIAL), N_VOCAB, (batch, length), generator=generator)


def right_padded(ids: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, tiny_models.PAD), mask


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    assert a.shape == b.shape
    return bool((a - b).abs().max() <= tolerance)


def record(model: Any, kind: str, run: Callable[[], Any]) -> list[Tensor]:
    """What one kind of site gives, layer after layer."""
    seen: list[Tensor] = []
    hooks = [
        (model.site(layer, kind), lambda activation, hook: seen.append(activation))
        for layer in range(model.n_layers)
    ]
    with torch.no_grad(), model.hooks(hooks):
        run()
    return seen


def silence_at_post(model: Any, layers: list[int], neurons: Tensor) -> Any:
    def edit(activation: Tensor, hook: Any) -> Tensor:
        return activation.index_fill(-1, neurons, 0.0)

    return model.hooks([(model.site(layer, "post"), edit) for layer in layers])


def count_hooks(model: Any) -> int:
    modules = {
        *model.bridge.modules(),
        *getattr(model.bridge, "original_model", nn.Identity()).modules(),
    }
    torch_hooks = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules)
    return torch_hooks + sum(len(point.fwd_hooks) for point in model.bridge.hook_dict.values())


class TestEveryArchitecture:
    @every_architecture
    def test_sizes_are_measured(self, name: str, open_model: Any) -> None:
        model = open_model(name)
        width = 4 * D_MODEL if name == "bloom" else D_MLP
        assert (model.n_layers, model.d_model, model.d_mlp) == (N_LAYERS, D_MODEL, width)
        assert model.n_vocab == N_VOCAB
        assert model.max_length == (2048 if name == "bloom" else MAX_LENGTH)
        assert model.gated == (name in GATED)
        assert model.attention == "native"
        assert model.dtype == torch.float32

    @every_architecture
    def test_sites_hold_what_hugging_face_computes(
        self, name: str, open_model: Any, plain: Any
    ) -> None:
        model, reference = open_model(name), plain(name)
        ids = some_ids()
        expected = reference.run(ids)
        assert close(model.logits(ids), expected)
        kinds = ["pre", "post", *(["pre_linear"] if name in GATED else [])]
        for kind in kinds:
            seen = record(model, kind, lambda: model.logits(ids))
            kept = getattr(reference, kind)
            assert len(seen) == len(kept) == N_LAYERS
            assert all(close(a, b) for a, b in zip(seen, kept, strict=True)), kind
        for layer, (pre, post) in enumerate(zip(reference.pre, reference.post, strict=True)):
            value = reference.pre_linear[layer] if name in GATED else 1.0
            assert close(model.act(layer, pre) * value, post)

    @every_architecture
    def test_weights_are_those_of_the_checkpoint(
        self, name: str, open_model: Any, plain: Any
    ) -> None:
        model, reference = open_model(name), plain(name)

        def weight(module: Any) -> Tensor:
            return module.weight if name == "gpt2" else module.weight.T

        into = [weight(each) for each in reference.modules(0)]
        value = [weight(each) for each in reference.modules(1)] if name in GATED else into
        if name == "phi3":
            into, value = zip(*(each.chunk(2, dim=1) for each in into), strict=True)
        for layer, out in enumerate(reference.modules(2)):
            assert torch.equal(model.w_in(layer), value[layer])
            assert torch.equal(model.w_out(layer), weight(out))
            gate = model.w_gate(layer)
            assert torch.equal(gate, into[layer]) if name in GATED else gate is None

    @every_architecture
    def test_an_edit_at_post_does_what_it_does_to_hugging_face(
        self, name: str, open_model: Any, plain: Any
    ) -> None:
        model, reference = open_model(name), plain(name)
        ids, neurons = some_ids(), torch.arange(0, model.d_mlp, 3)
        for layer in range(N_LAYERS):
            with silence_at_post(model, [layer], neurons):
                edited = model.logits(ids)
            with reference.off([layer], neurons):
                expected = reference.run(ids)
            assert not close(expected, reference.run(ids), 1e-2)
            assert close(edited, expected)

    @every_architecture
    def test_right_padding_changes_nothing(self, name: str, open_model: Any, plain: Any) -> None:
        model, reference = open_model(name), plain(name)
        ids, mask = right_padded(some_ids(), [20, 11])
        padded = record(model, "pre", lambda: model.body(ids, mask))
        logits = model.logits(ids, mask)
        for row, length in enumerate([20, 11]):
            alone = reference.run(ids[row : row + 1, :length])
            assert close(logits[row, :length], alone[0])
            for layer in range(N_LAYERS):
                assert close(padded[layer][row, :length], reference.pre[layer][0])

    @every_architecture
    def test_body_fires_the_hooks_and_skips_the_unembedding(
        self, name: str, open_model: Any, plain: Any
    ) -> None:
        model, reference = open_model(name), plain(name)
        ids, unembedded = some_ids(), []
        reference.run(ids)
        with model.hooks([("unembed.hook_out", lambda out, hook: unembedded.append(out.shape[1]))]):
            seen = record(model, "pre", lambda: model.body(ids))
            assert unembedded == []
            last = model.logits(ids, keep=1)
            whole = model.logits(ids)
        assert unembedded == [1, 20]
        assert last.shape == (2, 1, N_VOCAB)
        assert close(last, whole[:, -1:])
        assert all(close(a, b) for a, b in zip(seen, reference.pre, strict=True))

    @pytest.mark.slow
    @pytest.mark.parametrize("attention", ["native", "hooked"])
    @every_architecture
    def test_generation_under_an_edit_is_that_of_hugging_face(
        self, name: str, attention: str, open_model: Any, plain: Any
    ) -> None:
        model, reference = open_model(name, attention=attention), plain(name)
        lengths = [12, 5, 9, 3, 12, 7, 4, 10]
        ids, mask = (each.flip(1) for each in right_padded(some_ids(8, 12), lengths))
        neurons, layers = torch.arange(0, model.d_mlp, 2), list(range(N_LAYERS))
        settings = {"max_new_tokens": 8, "pad_token_id": 0, "do_sample": False}
        with silence_at_post(model, layers, neurons):
            written = model.continuations(ids, mask, max_new_tokens=8)
        with reference.off(layers, neurons):
            expected = reference.hf.generate(ids, attention_mask=mask.long(), **settings)
        unedited = reference.hf.generate(ids, attention_mask=mask.long(), **settings)
        assert torch.equal(written, expected)
        assert not torch.equal(expected, unedited)

    @every_architecture
    def test_hooks_leave_nothing_behind_even_after_an_error(
        self, name: str, open_model: Any
    ) -> None:
        model, ids, neurons = open_model(name), some_ids(), torch.arange(3)
        before, count, outer = model.logits(ids), count_hooks(model), []
        with model.hooks([(model.site(0, "pre"), lambda pre, hook: outer.append(1))]):
            with silence_at_post(model, [0, 2], neurons):
                assert count_hooks(model) > count
            with pytest.raises(RuntimeError), silence_at_post(model, [0, 2], neurons):
                raise RuntimeError
            assert torch.equal(model.logits(ids), before)
            assert outer == [1]
        with (
            pytest.raises(ValueError, match="no hook called"),
            model.hooks(
                [
                    (model.site(0, "pre"), lambda pre, hook: pre * 0),
                    ("blocks.0.typo", lambda a, hook: a),
                ]
            ),
        ):
            pass
        assert torch.equal(model.logits(ids), before)
        assert count_hooks(model) == count

    @pytest.mark.slow
    @every_architecture
    def test_the_doctor_passes_it(self, name: str, open_model: Any) -> None:
        from interp.models.doctor import doctor

        diagnosis = doctor(open_model(name))
        assert diagnosis.ok, str(diagnosis)
        assert len(str(diagnosis).splitlines()) == len(diagnosis.checks) + 2

    @every_architecture
    def test_native_attention_is_what_transformers_would_choose(
        self, name: str, open_model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, calls = open_model(name), []
        original = nn.functional.scaled_dot_product_attention

        def counted(*args: Any, **settings: Any) -> Tensor:
            calls.append(1)
            return original(*args, **settings)

        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
        model.body(some_ids())
        fused = name in FUSED
        assert model.bridge.original_model.config._attn_implementation == (
            "sdpa" if fused else "eager"
        )
        assert len(calls) == (N_LAYERS if fused else 0)

    @pytest.mark.slow
    @every_architecture
    def test_hooked_attention_shows_its_inside(
        self, name: str, open_model: Any, plain: Any
    ) -> None:
        from interp.models.doctor import doctor

        model = open_model(name, attention="hooked")
        ids = some_ids()
        assert close(model.logits(ids), plain(name).run(ids))
        for kind in ("q", "k", "v", "attn_out"):
            seen = record(model, kind, lambda: model.body(ids))
            assert [each.shape[:2] for each in seen] == [(2, 20)] * N_LAYERS
            assert {each[0, 0].numel() for each in seen} == {model.width(0, kind)}
        patterns: list[Tensor] = []
        with model.hooks(
            [("blocks.1.attn.hook_pattern", lambda pattern, hook: patterns.append(pattern))]
        ):
            model.body(ids)
        assert [pattern.shape for pattern in patterns] == [(2, 4, 20, 20)]
        assert patterns[0].triu(1).abs().max() == 0
        assert doctor(model).ok
        assert model.fingerprint["weights"] == open_model(name).fingerprint["weights"]

    @every_architecture
    def test_the_residual_stream_adds_up(self, name: str, open_model: Any) -> None:
        model, ids = open_model(name, attention="hooked"), some_ids()
        parts = {
            kind: record(model, kind, lambda: model.body(ids))
            for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        }
        native = record(open_model(name), "mlp_out", lambda: open_model(name).body(ids))
        for layer in range(N_LAYERS):
            total = sum(parts[kind][layer] for kind in ("resid_pre", "attn_out", "mlp_out"))
            assert close(total, parts["resid_post"][layer])
            assert close(native[layer], parts["mlp_out"][layer])

    @every_architecture
    def test_parameters_are_frozen_and_gradients_flow(self, name: str, open_model: Any) -> None:
        model, ids = open_model(name), some_ids(length=6)
        modules = {*model.bridge.modules(), *model.bridge.original_model.modules()}
        assert not any(p.requires_grad for each in modules for p in each.parameters(recurse=False))
        scale = torch.ones(N_LAYERS, model.d_mlp, requires_grad=True)
        hooks = [
            (model.site(layer, "post"), lambda post, hook, layer=layer: post * scale[layer])
            for layer in range(N_LAYERS)
        ]
        with model.hooks(hooks):
            target = model.logits(ids, keep=1)[0, 0, 5]
        (gradient,) = torch.autograd.grad(target, scale)
        assert (gradient.abs().amax(dim=1) > 1e-3).all()

    @every_architecture
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_short_floats_are_those_of_hugging_face(
        self, name: str, dtype: torch.dtype, checkpoint: Any, plain: Any
    ) -> None:
        from interp.models.load import load

        model, ids = load(checkpoint(name), dtype=dtype), some_ids()
        expected = plain(name, dtype=dtype).run(ids)
        assert model.dtype == expected.dtype == dtype
        assert close(model.logits(ids), expected, 2e-2)
        seen = record(model, "pre", lambda: model.body(ids))
        assert all(each.dtype == dtype for each in seen)
        assert model.fingerprint["dtype"] in str(dtype)


class TestBuilders:
    @every_architecture
    def test_a_seed_gives_one_checkpoint(self, name: str, checkpoint: Any, tmp_path: Path) -> None:
        first = load_file(checkpoint(name) / "model.safetensors")
        again = load_file(tiny_models.build(name, tmp_path / "again") / "model.safetensors")
        other = load_file(tiny_models.build(name, tmp_path / "other", 1) / "model.safetensors")
        assert first.keys() == again.keys() == other.keys()
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not any(torch.equal(first[key], other[key]) for key in first)
        assert all(each.std() > 0 for each in first.values())  # norms and biases included


class TestTokens:
    def test_text_is_encoded_without_special_tokens_and_comes_back(self, open_model: Any) -> None:
        model = open_model("llama")
        texts = ["the quick Zürich", "中国 и ещё", "the" * 100, ""]
        ids = model.encode_batch(texts)
        assert [model.decode(each) for each in ids] == texts
        assert model.encode(texts[0]) == ids[0]
        assert not {id for each in ids for id in each} & set(model.special_ids)
        assert model.encode_batch([]) == []

    def test_special_tokens_are_named(self, open_model: Any) -> None:
        model = open_model("llama")
        assert model.special_ids == (0, 1, 2, 3)
        assert model.bos_id == tiny_models.BOS

    def test_the_tokenizer_is_untouched(self, checkpoint: Any, open_model: Any) -> None:
        plain = transformers.AutoTokenizer.from_pretrained(checkpoint("gpt2"))
        model = open_model("gpt2")
        before = model.fingerprint
        for prepend_bos, length in ((True, 2), (False, 1)):  # TransformerLens reads text with it
            assert model.bridge.to_tokens("a", prepend_bos=prepend_bos).shape == (1, length)
        long = "the end " * MAX_LENGTH  # longer than the model allows: cut by no one
        assert model.encode(long) == plain(long, add_special_tokens=False)["input_ids"]
        assert model.tokenizer("a")["input_ids"] == plain("a")["input_ids"]
        assert model.fingerprint == before


class TestSites:
    def test_neuron_sites_have_the_names_of_hooked_transformer(self, open_model: Any) -> None:
        model = open_model("llama")
        kinds = ("pre", "pre_linear", "post", "mlp_out", "resid_pre", "resid_post")
        assert [model.site(1, kind) for kind in kinds] == [
            "blocks.1.mlp.hook_pre",
            "blocks.1.mlp.hook_pre_linear",
            "blocks.1.mlp.hook_post",
            "blocks.1.hook_mlp_out",
            "blocks.1.hook_resid_pre",
            "blocks.1.hook_resid_post",
        ]

    def test_an_unknown_kind_names_those_there_are(self, open_model: Any) -> None:
        site = open_model("bloom").site
        unchecked = getattr(site, "__wrapped__", None)
        call = site if unchecked is None else functools.partial(unchecked, open_model("bloom"))
        with pytest.raises(ValueError, match="has pre, post, mlp_out, resid_pre, resid_post"):
            call(0, "typo")
        with pytest.raises(ValueError, match="'pre_linear' is not a site"):
            site(0, "pre_linear")
        with pytest.raises(ValueError, match='attention="hooked"'):
            site(0, "q")
        with pytest.raises(ValueError, match=r"Layer 3 does not exist: .* has 3"):
            site(3, "pre")

    def test_padding_on_the_wrong_side_is_refused(self, open_model: Any) -> None:
        model = open_model("llama")
        ids, right = right_padded(some_ids(), [20, 11])
        with pytest.raises(ValueError, match="padding on the left"):
            model.continuations(ids, right)
        for run in (model.body, model.logits):
            with pytest.raises(ValueError, match="padding on the right"):
                run(ids, right.flip(1))


class TestLoading:
    def test_a_model_without_mlp_neurons_is_refused_with_one_sentence(self, tmp_path: Path) -> None:
        from interp.models.load import load

        small = {"vocab_size": N_VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
        for config in (
            transformers.MambaConfig(**small),
            transformers.Mamba2Config(**small, num_heads=4, head_dim=16),
        ):
            folder = tmp_path / config.model_type
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            tiny_models.tokenizer().save_pretrained(folder)
            for attention in ("native", "hooked"):
                with pytest.raises(ValueError, match="cannot be read neuron by neuron") as error:
                    load(folder, attention=attention)
                assert "\n" not in str(error.value)
                assert re.findall(r"\.(?:\s|$)", str(error.value)) == ["."]

    def test_a_missing_babel_and_a_missing_folder_say_so(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from interp.models import load as loading

        monkeypatch.setattr(loading, "__file__", str(tmp_path / "models" / "load.py"))
        with pytest.raises(FileNotFoundError, match="babel model is not in this installation"):
            loading.load("babel")
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            loading.load(tmp_path / "nothing")

    def test_babel_is_the_folder_in_the_package(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Any
    ) -> None:
        from interp.models import load as loading

        shutil.copytree(checkpoint("llama"), tmp_path / "babel" / "model")
        monkeypatch.setattr(loading, "__file__", str(tmp_path / "models" / "load.py"))
        assert loading.load("babel").name == "babel"

    @pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
    @pytest.mark.parametrize("emulated", [True, False])
    def test_bfloat16_becomes_float32_only_where_it_is_emulated(
        self,
        stored: torch.dtype,
        emulated: bool,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        checkpoint: Any,
    ) -> None:
        from interp.models import load as loading

        saved = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=stored)
        saved.save_pretrained(tmp_path)
        tiny_models.tokenizer().save_pretrained(tmp_path)
        monkeypatch.setattr(loading, "_emulates_bfloat16", lambda device: emulated)
        model, widened = loading.load(tmp_path), emulated and stored == torch.bfloat16
        assert model.dtype == (torch.float32 if widened else stored)
        why = "stored in bfloat16, for which this CPU has no instructions"
        assert model.precision.endswith(why if widened else "as stored")
        for name, parameter in saved.named_parameters():
            assert parameter.to(model.dtype).equal(model._parameters[name])
        asked = loading.load(tmp_path, dtype=torch.bfloat16)
        assert asked.dtype == torch.bfloat16
        assert asked.precision.endswith("no instructions for it" if emulated else "as requested")

    @pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64"])
    @pytest.mark.parametrize("has", [(False, False), (True, False), (False, True)])
    def test_bfloat16_is_emulated_on_x86_without_both_extensions(
        self, machine: str, has: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from interp.models import load as loading

        monkeypatch.setattr(loading.platform, "machine", lambda: machine)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has[0])
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has[1])
        expected = machine != "aarch64" and not any(has)
        assert loading._emulates_bfloat16(torch.device("cpu")) is expected
        assert not loading._emulates_bfloat16(torch.device("cuda"))
        faster = loading.is_faster_in_bfloat16
        known = machine != "aarch64" and any(has)
        assert faster(torch.float32, torch.device("cpu")) is known
        assert not faster(torch.float32, torch.device("cuda"))
        assert not faster(torch.bfloat16, torch.device("cpu"))

    def test_a_device_map_is_passed_on(self, checkpoint: Any, plain: Any, tmp_path: Path) -> None:
        from interp.models.doctor import doctor
        from interp.models.load import load

        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
        places |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.2": "cpu"}
        places["model.layers.1"] = "disk"
        model = load(checkpoint("llama"), device_map=places, offload_folder=str(tmp_path / "off"))
        assert model.bridge.original_model.hf_device_map == places
        ids = some_ids()
        assert close(model.logits(ids), plain("llama").run(ids))
        assert model.offloaded
        assert "offloaded" in model.fingerprint["weights"]
        assert {model.layer_device(layer).type for layer in range(N_LAYERS)} == {"cpu"}
        with pytest.raises(ValueError, match="not both"):
            load(checkpoint("llama"), device="cpu", device_map="cpu")
        assert doctor(load(checkpoint("llama"), device_map="cpu")).ok

    @pytest.mark.slow
    def test_wrap_takes_the_bridge_you_hold(self, checkpoint: Any, open_model: Any) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        from interp.models.doctor import doctor
        from interp.models.load import wrap

        bridge = TransformerBridge.boot_transformers(str(checkpoint("llama")), device="cpu")
        model = wrap(bridge, name="mine")
        assert (model.name, model.attention, model.bridge) == ("mine", "hooked", bridge)
        ids = some_ids()
        assert close(model.logits(ids), open_model("llama").logits(ids))
        ours, theirs = (
            each.continuations(ids, torch.ones_like(ids).bool(), max_new_tokens=4)
            for each in (model, open_model("llama"))
        )
        assert torch.equal(ours, theirs)  # its attention sees the prompt's keys and values
        assert doctor(wrap(bridge)).ok
        ours, theirs = model.fingerprint, open_model("llama").fingerprint
        assert ours["tokenizer"] == theirs["tokenizer"]
        if not HAS_CLASSIC:  # 3.9 gives the unembedding a bias of zeros
            assert ours["weights"] == theirs["weights"]
        bridge.enable_compatibility_mode(disable_warnings=True)
        assert (theirs["processing"], wrap(bridge).fingerprint["processing"]) == (
            "none",
            "folded and centred",
        )
        with pytest.raises(ValueError, match="not Linear"):
            wrap(nn.Linear(2, 2))


def as_transformer_lens(model: Any, other: Any) -> None:
    """The calls of a TransformerLens user, side by side on our model and on TransformerLens'."""
    texts = ["The dog sees", "a red moon and keeps silent"]
    for text in (texts, texts[0]):
        for settings in ({}, {"prepend_bos": False}, {"padding_side": "left"}):
            ours, theirs = (each.to_tokens(text, **settings) for each in (model, other))
            assert torch.equal(ours, theirs)
    assert model.to_str_tokens(texts[0]) == other.to_str_tokens(texts[0])
    assert model.cfg.n_layers == other.cfg.n_layers
    ids = other.to_tokens(texts[1])
    before = model(ids)
    for text in (ids, texts[1]):
        assert close(model(text), other(text))
    assert close(model(ids, return_type="loss"), other(ids, return_type="loss"))
    at = f"blocks.{N_LAYERS - 1}.mlp.hook_post"
    filtered = {"names_filter": lambda name: name.endswith("mlp.hook_post")}
    found = [each.run_with_cache(ids, **filtered)[1] for each in (model, other)]
    assert list(found[0].keys()) == list(found[1].keys())
    assert close(found[0][at], found[1][at])
    off = [(at, lambda values, hook: torch.zeros_like(values))]
    ours, theirs = (each.run_with_hooks(ids, fwd_hooks=off) for each in (model, other))
    assert close(ours, theirs)
    assert not close(ours, before)
    assert torch.equal(model(ids), before)
    chosen = [(lambda name: name == at, off[0][1])]
    for hooks in ((off,), (chosen, [])):
        with model.hooks(*hooks) as inside:
            assert inside is model
            assert close(model(ids), theirs)
    assert torch.equal(model(ids), before)
    as_transformer_lens_writes(model, other, off)
    one = int(ids[0, -1])
    assert model.to_string(ids[0]) == other.to_string(ids[0])
    assert model.to_single_str_token(one) == other.to_single_str_token(one)
    single = other.to_single_str_token(one)
    assert model.to_single_token(single) == other.to_single_token(single) == one
    assert model.get_token_position(one, ids) == other.get_token_position(one, ids)
    assert close(model.W_U, other.W_U)
    assert close(model.W_E, other.W_E)
    assert model.hook_dict.keys() == model.bridge.hook_dict.keys()
    assert model.blocks is model.bridge.blocks
    model.add_hook(at, off[0][1])
    assert close(model(ids), theirs)
    model.reset_hooks()
    assert torch.equal(model(ids), before)
    with pytest.raises(AttributeError, match="has no attribute 'run_with_hook'"):
        _ = model.run_with_hook


def as_transformer_lens_writes(model: Any, other: Any, off: Any) -> None:
    for prompt in ("The dog sees", other.to_tokens("The dog sees")):
        for settings in ({}, {"return_type": "tokens"}, {"stop_at_eos": False}):
            greedy = {"do_sample": False, "verbose": False, "max_new_tokens": 6, **settings}
            ours, theirs = (each.generate(prompt, **greedy) for each in (model, other))
            assert type(ours) is type(theirs)
            assert bool(torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs)
    drawn = []
    for each in (model, other):
        torch.manual_seed(0)
        drawn.append(each.generate("The dog", verbose=False))  # sampled, ten tokens
    assert drawn[0] == drawn[1]
    edited = []
    for each in (model, other):
        with each.hooks(fwd_hooks=off):
            edited.append(each.generate("The dog", do_sample=False, verbose=False))
    assert edited[0] == edited[1] != model.generate("The dog", do_sample=False, verbose=False)


class TestAsTransformerLens:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
    def test_a_bridge_opened_by_transformer_lens_does_the_same(
        self, name: str, checkpoint: Any, open_model: Any
    ) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(str(checkpoint(name)), device="cpu")
        as_model(bridge)  # without it, 4.3 forgets what it has cached while it generates
        as_transformer_lens(open_model(name), bridge)

    @pytest.mark.parametrize("how", ["native", "hooked", "a bridge of TransformerLens"])
    def test_the_unembedding_multiplies_no_slices(self, how: Any, checkpoint: Any) -> None:
        """In bfloat16 a CPU would copy the weights for each row of a slice."""
        from transformer_lens.model_bridge import TransformerBridge

        from interp.models.load import load, wrap

        name = str(checkpoint("llama"))
        model = (
            load(name, attention=how)
            if how in ("native", "hooked")
            else wrap(TransformerBridge.boot_transformers(name, device="cpu"))
        )
        seen = []
        linear = model.bridge.unembed.original_component
        linear.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
        model.logits(torch.tensor([[5, 6, 7], [8, 9, 10]]), keep=2)
        assert seen == [True]

    @classic_only
    def test_a_hooked_transformer_does_the_same(self, classic: Any) -> None:
        from interp.models.load import wrap

        other = classic()
        as_transformer_lens(wrap(classic()), other)

    def test_text_is_told_from_what_the_tokenizer_adds(self, open_model: Any) -> None:
        model = open_model("llama")
        tokens = model.to_tokens(["a dog", "a"])
        text = [
            ids[keep].tolist() for ids, keep in zip(tokens, model.text_mask(tokens), strict=True)
        ]
        assert text == model.encode_batch(["a dog", "a"])
        assert not model.text_mask(tokens).all()


class TestFingerprint:
    def test_it_does_not_change_between_loads_or_uses(self, checkpoint: Any) -> None:
        from interp.models.load import load

        first, again = load(checkpoint("llama")), load(checkpoint("llama"))
        before = first.fingerprint
        first.tokenizer(["a", "a longer one"], padding=True)
        first.continuations(some_ids(), torch.ones(2, 20, dtype=torch.bool), max_new_tokens=2)
        assert again.fingerprint == before == first.fingerprint
        assert all(isinstance(each, str) and each for each in before.values())

    def test_one_weight_changes_it(self, checkpoint: Any, tmp_path: Path) -> None:
        assert self.changed(checkpoint, tmp_path, self.change_one_weight) == {"weights", "name"}

    def test_another_tokenizer_changes_it(self, checkpoint: Any, tmp_path: Path) -> None:
        assert self.changed(checkpoint, tmp_path, self.swap_two_tokens) == {"tokenizer", "name"}

    def test_another_dtype_changes_it(self, checkpoint: Any) -> None:
        from interp.models.load import load

        whole = load(checkpoint("llama")).fingerprint
        short = load(checkpoint("llama"), dtype=torch.bfloat16).fingerprint
        assert {key for key in whole if whole[key] != short[key]} == {"weights", "dtype"}

    @staticmethod
    def change_one_weight(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"][7] += 1e-3
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    @staticmethod
    def swap_two_tokens(folder: Path) -> None:
        path = folder / "tokenizer.json"
        text = path.read_text(encoding="utf-8")
        swapped = text.replace('"th":', '"?":').replace('"he":', '"th":').replace('"?":', '"he":')
        assert swapped != text
        path.write_text(swapped, encoding="utf-8")

    @staticmethod
    def changed(checkpoint: Any, folder: Path, change: Callable[[Path], None]) -> set[str]:
        from interp.models.load import load

        copy = Path(shutil.copytree(checkpoint("llama"), folder / "copy"))
        change(copy)
        a, b = load(checkpoint("llama")).fingerprint, load(copy).fingerprint
        return {key for key in a if a[key] != b[key]}


class Absolute(nn.Module):
    """An activation that is positive for negative gates."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class TestDoctorFindsWhatIsBroken:
    """Layer 1 is broken by hand; the check that fails is the one that names the fault."""

    FIRES = "every hook runs once per pass, on [batch pos width]"
    POST = "post is act(pre) times pre_linear"
    OUT = "mlp_out is post times w_out"
    EDIT = "an edit at post equals one made without hooks"
    WRITES = "edits apply during generation"
    ACTIVE = "a neuron fires where its activation is positive"
    SITES = "an edit at any site moves the logits"
    PLANT = "a neuron changed in the weights changes at its hooks"
    CACHE = "a cache holds what hooks see"
    BATCH = "a text is read alike alone and in a batch"
    GOES_ON = "generation continues as the text is read"
    LOOKS = "hooks that only look change nothing"
    RESIDUAL = "resid_pre is what a layer reads, resid_post its output"

    def failures(self, model: Any) -> set[str]:
        from interp.models.doctor import doctor

        diagnosis = doctor(model)
        assert not diagnosis.ok
        assert "FAIL" in str(diagnosis)
        return {check.name for check in diagnosis.checks if not check.passed}

    @pytest.fixture
    def model(self, checkpoint: Any) -> Any:
        from interp.models.load import load

        return load(checkpoint("llama"))

    def test_a_model_that_reads_no_text(self, model: Any) -> None:
        """As one that continues from what another has computed."""

        def forward(*_: Any) -> Tensor:
            raise ValueError("give the keys and values as well")

        vars(model)["logits"] = forward
        assert self.failures(model) == {"the model reads text"}

    def test_a_hook_that_never_fires(self, model: Any) -> None:
        gate = model.bridge.blocks[1].mlp.gate
        vars(gate)["forward"] = gate.original_component.forward
        assert self.failures(model) == {self.FIRES, self.SITES}

    def test_a_hook_that_fires_twice(self, model: Any) -> None:
        gate = model.bridge.blocks[1].mlp.gate
        inner = gate.forward
        vars(gate)["forward"] = lambda x: gate.hook_out(inner(x))
        assert self.failures(model) == {self.FIRES}

    def test_a_post_that_is_not_act_of_pre_times_linear(self, model: Any) -> None:
        out = model.bridge.blocks[1].mlp.out
        inner = out.forward
        vars(out)["forward"] = lambda x: inner(1.1 * x)
        assert self.failures(model) == {self.POST}

    def test_a_post_that_is_not_what_is_projected(self, model: Any) -> None:
        out = model.bridge.blocks[1].mlp.out
        vars(out)["forward"] = lambda x: out.hook_out(out.original_component(out.hook_in(x) + 0.1))
        assert self.failures(model) >= {self.OUT}

    def test_numbers_that_are_none(self, model: Any) -> None:
        out = model.bridge.blocks[1].mlp.out
        inner = out.forward
        vars(out)["forward"] = lambda x: inner(x * float("nan"))
        assert self.failures(model) >= {self.POST, self.EDIT}

    def test_a_model_that_cannot_even_be_asked(
        self, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr("interp.models.neuron_model.NeuronModel.act")
        assert self.failures(model) == {self.POST, self.ACTIVE}

    def test_an_edit_that_does_nothing(self, model: Any) -> None:
        out = model.bridge.blocks[1].mlp.out

        def forward(x: Tensor) -> Tensor:
            out.hook_in(x.clone())
            return out.hook_out(out.original_component(x))

        vars(out)["forward"] = forward
        assert self.failures(model) - {self.WRITES} == {self.EDIT, self.SITES}

    def test_an_edit_of_what_a_layer_adds_that_does_nothing(self, model: Any) -> None:
        """TransformerLens before July 2026, on OPT and XGLM."""
        mlp = model.bridge.blocks[1].mlp

        def forward(x: Tensor) -> Tensor:
            output = mlp.original_component(mlp.hook_in(x))
            mlp.hook_out(output.clone())
            return output

        vars(mlp)["forward"] = forward
        assert self.failures(model) == {self.SITES}

    def test_values_overwritten_after_they_were_shown(self, model: Any) -> None:
        """Fused kernels that use the memory of a tensor again."""
        out = model.bridge.blocks[1].mlp.out

        def forward(x: Tensor) -> Tensor:
            shown = out.hook_in(x)
            result = out.hook_out(out.original_component(shown.clone()))
            shown.mul_(2)
            return result

        vars(out)["forward"] = forward
        assert self.failures(model) >= {self.POST, self.OUT}

    def test_looking_that_changes_what_is_seen(self, model: Any) -> None:
        """A graph that is replayed where nobody looks, and computed where somebody does."""
        out = model.bridge.blocks[1].mlp.out
        inner = out.forward
        vars(out)["forward"] = lambda x: inner(x) * (1.1 if out.hook_in._forward_hooks else 1.0)
        assert self.failures(model) >= {self.LOOKS}

    def test_a_residual_stream_without_what_is_added_to_it_later(self, model: Any) -> None:
        """Kernels that add the residual stream when they normalize it."""
        block = model.bridge.blocks[1]

        def forward(hidden: Tensor, *args: Any, **settings: Any) -> Any:
            hidden = block.hook_in(hidden)
            output = block.original_component(hidden, *args, **settings)
            states = output[0] if isinstance(output, tuple) else output
            states = hidden + block.hook_out(states - hidden)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        vars(block)["forward"] = forward
        assert self.failures(model) == {self.RESIDUAL}

    def test_a_sum_of_which_a_hook_sees_one_part(self, model: Any) -> None:
        """An MLP on two devices, whose halves are added after the hook."""
        mlp = model.bridge.blocks[1].mlp

        def forward(x: Tensor) -> Tensor:
            half = mlp.original_component(mlp.hook_in(x)) / 2
            return half + mlp.hook_out(half)

        vars(mlp)["forward"] = forward
        assert self.failures(model) == {self.OUT}

    def test_tokens_that_a_hook_does_not_see(self, model: Any) -> None:
        """What an engine took from its cache of prefixes is not computed again."""
        gate = model.bridge.blocks[1].mlp.gate

        def forward(x: Tensor) -> Tensor:
            gates = gate.original_component(gate.hook_in(x))
            return torch.cat([gates[:, :-1], gate.hook_out(gates[:, -1:])], dim=1)

        vars(gate)["forward"] = forward
        assert self.failures(model) >= {self.FIRES}

    def test_hooks_of_another_layer_than_their_names_say(self, model: Any) -> None:
        site, other = model.site, {1: 2, 2: 1}
        vars(model)["site"] = lambda layer, kind: site(other.get(layer, layer), kind)
        assert self.failures(model) >= {self.OUT, self.EDIT, self.RESIDUAL}

    def test_an_edit_that_ends_with_the_prompt(self, model: Any) -> None:
        """Tokens that are written one at a time are computed without it."""
        for block in model.bridge.blocks:
            out = block.mlp.out

            def forward(x: Tensor, out: Any = out) -> Tensor:
                edited = out.hook_in(x) if x.shape[1] > 1 else x
                return out.hook_out(out.original_component(edited))

            vars(out)["forward"] = forward
        assert self.failures(model) == {self.WRITES}

    def test_an_edit_that_is_made_again_for_every_token_written(self, model: Any) -> None:
        """Steering that is added to itself: of all others, zeros alone would not show it."""
        for block in model.bridge.blocks:
            out = block.mlp.out

            def forward(x: Tensor, out: Any = out) -> Tensor:
                for _ in range(1 if x.shape[1] > 1 else 3):
                    x = out.hook_in(x)
                return out.hook_out(out.original_component(x))

            vars(out)["forward"] = forward
        assert self.failures(model) == {self.WRITES}

    def test_weights_that_are_not_those_in_use(self, model: Any) -> None:
        gate = model.bridge.blocks[2].mlp.gate
        used = gate.original_component.weight.clone()
        vars(gate)["forward"] = lambda x: gate.hook_out(linear(gate.hook_in(x), used))
        assert self.failures(model) == {self.PLANT}

    def test_an_activation_that_is_positive_for_negative_gates(self, model: Any) -> None:
        """xIELU of Apertus."""
        from interp.models.doctor import doctor

        for block in model.bridge.blocks:
            block.mlp.original_component.act_fn = Absolute()
        assert self.failures(model) == {self.ACTIVE}
        (check,) = [check for check in doctor(model).checks if check.name == self.ACTIVE]
        assert check.detail.endswith('count with fires_by="activation"')

    def test_texts_that_see_one_another(self, model: Any) -> None:
        out = model.bridge.blocks[1].mlp.out
        inner = out.forward
        vars(out)["forward"] = lambda x: inner(x) + x.mean()
        assert self.failures(model) >= {self.BATCH}

    @pytest.mark.slow
    def test_a_cache_made_by_other_attention(self, tmp_path: Path) -> None:
        """Falcon, asked for its attention, attends to later tokens."""
        from interp.models.doctor import doctor
        from interp.models.load import load

        model = load(architectures.build("falcon", tmp_path))
        assert doctor(model).ok
        model.bridge.adapter.supports_hf_output_attentions = True
        assert self.failures(model) == {self.CACHE}

    def test_tokens_generated_each_as_if_it_were_the_first(self, model: Any) -> None:
        """TransformerLens 4.3 before the cache's new name was passed on."""
        original = model.bridge.original_model
        inner = original.forward

        def forgetful(*inputs: Any, **settings: Any) -> Any:
            for name in ("cache", "past_key_values"):
                settings.pop(name, None)
            return inner(*inputs, **settings)

        vars(original)["forward"] = forgetful
        assert self.GOES_ON in self.failures(model)


@classic_only
class TestHookedTransformer:
    def test_it_gives_what_hugging_face_gives(self, classic: Any, plain: Any) -> None:
        from interp.models.load import wrap

        model, reference = wrap(classic()), plain("llama")
        assert (model.n_layers, model.d_model, model.d_mlp) == (N_LAYERS, D_MODEL, D_MLP)
        assert model.gated
        assert model.architecture == "LlamaForCausalLM"
        ids = some_ids()
        assert close(model.logits(ids), reference.run(ids))
        for kind in ("pre", "pre_linear", "post"):
            seen = record(model, kind, lambda: model.body(ids))
            kept = getattr(reference, kind)
            assert all(close(a, b) for a, b in zip(seen, kept, strict=True))
        assert model.site(0, "pre") == "blocks.0.mlp.hook_pre"
        assert close(model.w_in(1), rearrange(reference.modules(1)[1].weight, "n d -> d n"))
        assert close(model.w_gate(1), rearrange(reference.modules(0)[1].weight, "n d -> d n"))
        assert close(model.w_out(1), rearrange(reference.modules(2)[1].weight, "d n -> n d"))

    def test_the_doctor_passes_it(self, classic: Any) -> None:
        from interp.models.doctor import doctor
        from interp.models.load import wrap

        model = wrap(classic())
        before = model.w_out(1).clone()
        diagnosis = doctor(model)
        assert diagnosis.ok, str(diagnosis)
        assert torch.equal(model.w_out(1), before)

    def test_the_doctor_finds_an_edit_that_does_nothing(self, classic: Any) -> None:
        from interp.models.doctor import doctor
        from interp.models.load import wrap

        model = wrap(classic())
        point = model.bridge.blocks[1].mlp.hook_post
        attach = point.add_hook

        def attach_deaf(callback: Any, **settings: Any) -> None:
            def run(activation: Tensor, hook: Any) -> None:
                callback(activation, hook=hook)

            attach(run, **settings)

        point.add_hook = attach_deaf
        assert "edit at post" in next(c.name for c in doctor(model).checks if not c.passed)

    def test_edits_padding_and_generation(self, classic: Any, plain: Any) -> None:
        from interp.models.load import wrap

        model, reference = wrap(classic()), plain("llama")
        neurons, layers = torch.arange(0, D_MLP, 2), list(range(N_LAYERS))
        ids, mask = right_padded(some_ids(length=12), [12, 5])
        with silence_at_post(model, layers, neurons), reference.off(layers, neurons):
            edited, expected = model.logits(ids, mask), reference.run(ids[1:, :5])
            assert close(edited[1, :5], expected[0])
            left, left_mask = ids.flip(1), mask.flip(1)
            written = model.continuations(left, left_mask, max_new_tokens=8)
            settings = {"max_new_tokens": 8, "pad_token_id": 0, "do_sample": False}
            assert torch.equal(
                written, reference.hf.generate(left, attention_mask=left_mask.long(), **settings)
            )
        assert not close(model.logits(ids, mask), edited, 1e-2)
        assert model.logits(ids, mask, keep=2).shape == (2, 2, N_VOCAB)

    def test_hooks_leave_nothing_behind_even_after_an_error(self, classic: Any) -> None:
        from interp.models.load import wrap

        model, ids = wrap(classic()), some_ids()
        before, count = model.logits(ids), count_hooks(model)
        with pytest.raises(RuntimeError), silence_at_post(model, [0], torch.arange(9)):
            raise RuntimeError
        assert torch.equal(model.logits(ids), before)
        assert count_hooks(model) == count

    def test_the_body_skips_the_unembedding(self, classic: Any) -> None:
        from interp.models.load import wrap

        model, calls = wrap(classic()), []
        model.bridge.unembed.register_forward_hook(lambda *args: calls.append(1))
        model.body(some_ids())
        assert calls == []
        model.logits(some_ids())
        assert calls == [1]

    def test_the_fingerprint_records_folded_weights(self, classic: Any) -> None:
        from interp.models.load import wrap

        raw, again = wrap(classic()).fingerprint, wrap(classic()).fingerprint
        folded = wrap(classic(fold_ln=True, center_unembed=True)).fingerprint
        assert raw == again
        assert raw["processing"] == "none"
        assert folded["processing"] == "folded layer norms, centred unembedding"
        assert raw["weights"] != folded["weights"]

    def test_a_pass_over_text_counts_what_the_bridge_counts(
        self, classic: Any, checkpoint: Callable[[str], Path]
    ) -> None:
        from interp.counting.collect import collect
        from interp.models.load import load, wrap
        from tests.campaigns.kills import blocks

        bridged, hooked = load(checkpoint("llama")), wrap(classic())
        corpora = blocks(bridged)
        there, here = (
            collect(model, corpora, progress=False).firing for model in (bridged, hooked)
        )
        assert torch.equal(there.tokens, here.tokens)
        assert int(there.fired.sum()) > 10_000
        assert int((there.fired - here.fired).abs().sum()) <= 5  # gates within rounding of zero


def test_a_model_that_is_nowhere_is_named(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("The hub cannot be reached.\nMuch advice.")

    monkeypatch.setattr("interp.models.load.check_reachable", lambda *_, **__: None)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(
        OSError, match=r"no-such/model is neither a local folder.*cannot be reached\.\) Check"
    ):
        load("no-such/model")
