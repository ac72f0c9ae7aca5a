"""Architectures beyond those of `tiny_models`: opened by their modules, hybrids, the refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.interventions.edits import deactivate, intervene
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from interp.models.plain_adapter import FUSED, GATED, UNGATED, parts_of
from tests import tiny_models
from tests.campaigns import architectures
from tests.campaigns.architectures import (
    JOBS,
    Outcome,
    build,
    in_a_process,
    read_table,
    table,
    tried,
)
from tests.expert_loops import recorded

WITHOUT_ADAPTER = ("ministral", "helium", "persimmon", "minicpm3")
HYBRID = ("recurrent_gemma", "qwen3_5_text", "olmo_hybrid")
PICTURES = ("gemma3",)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WITHOUT_ADAPTER, *HYBRID, *PICTURES, "granite", "lfm2"])
def test_it_works_to_the_end(name: str, tmp_path: Path) -> None:
    outcome = tried(name, tmp_path / "model")
    assert outcome == Outcome(name, tuple(JOBS)), outcome.why


@pytest.mark.slow
def test_what_granite_adds_to_the_residual_stream_is_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.models.doctor import doctor

    monkeypatch.setitem(architectures.SPECIAL, "granite", {"residual_multiplier": 0.5})
    model = load(build("granite", tmp_path))
    ids, seen = torch.arange(10, 20)[None], {}
    names = [model.site(1, "post"), model.site(1, "mlp_out")]
    with model.hooks(
        [(name, lambda values, hook: seen.update({hook.name: values})) for name in names]
    ):
        model.body(ids)
    expected = 0.5 * seen[model.bridge.hook_dict[names[0]].name] @ model.w_out(1)
    assert torch.allclose(seen[model.bridge.hook_dict[names[1]].name], expected, atol=1e-5)
    assert doctor(model).ok


def test_hooked_attention_needs_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r'no adapter for MinistralForCausalLM.*attention="native"'
    ):
        load(build("ministral", tmp_path), attention="hooked")


def test_the_modules_of_a_second_model_are_looked_up_again(tmp_path: Path) -> None:
    first = load(build("ministral", tmp_path / "first"))
    second = load(build("ministral", tmp_path / "second"))
    assert repr(first).split("(")[0] == repr(second).split("(")[0]
    assert second.fingerprint["weights"] == first.fingerprint["weights"]


@pytest.mark.parametrize("names", [*GATED, *FUSED, *UNGATED])
def test_projections_go_by_the_names_that_models_use(names: tuple[str, ...]) -> None:
    model = Stack(names)
    assert parts_of(model, "Stack").projections == names
    assert parts_of(model, "Stack").layers == "layers"
    assert parts_of(model, "Stack").mlp == "ffn"


def test_modules_that_cannot_be_told_apart_are_refused() -> None:
    model = Stack(GATED[0])
    del model.layers[1].ffn
    with pytest.raises(ValueError, match="do not show one list of layers with an MLP in each"):
        parts_of(model, "Stack")
    two = Stack(GATED[0])
    for layer in two.layers:
        layer.other = Stack.Layer(GATED[0]).ffn
    with pytest.raises(ValueError, match="do not show one MLP with its projections in every layer"):
        parts_of(two, "Stack")
    bare = Stack(GATED[0])
    bare.lm_head = None
    with pytest.raises(ValueError, match="do not show one embedding and one unembedding"):
        parts_of(bare, "Stack")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cohere2_moe", "minimax", "granitemoeshared", "kimi_k25"])
def test_mixtures_that_transformer_lens_does_not_know_work_to_the_end(
    name: str, tmp_path: Path
) -> None:
    outcome = tried(name, tmp_path / "model")
    assert outcome == Outcome(name, tuple(JOBS), mixture=True), outcome.why


def test_dense_mlps_beside_experts_are_not_left_out() -> None:
    for names, is_read in ((GATED[0], True), (GATED[1], False), (FUSED[0], False)):
        model = Stack(names)
        del model.layers[1].ffn
        model.layers[1].experts = torch.nn.Module()
        vars(model.layers[1].experts).update(num_experts=4, has_gate=True, is_transposed=False)
        if is_read:
            assert parts_of(model, "Stack", experts=True).projections == ()
        else:
            with pytest.raises(ValueError, match="dense MLPs beside experts by known names"):
                parts_of(model, "Stack", experts=True)
        with pytest.raises(ValueError, match="one list of layers with an MLP in each"):
            parts_of(model, "Stack")


class Stack(torch.nn.Module):
    """Two layers, each with an MLP called ffn."""

    class Layer(torch.nn.Module):
        def __init__(self, names: tuple[str, ...]) -> None:
            super().__init__()
            self.ffn = torch.nn.Module()
            for name in names:
                setattr(self.ffn, name, torch.nn.Linear(2, 2))

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.tokens, self.lm_head = torch.nn.Embedding(3, 2), torch.nn.Linear(2, 3)
        self.layers = torch.nn.ModuleList(self.Layer(names) for _ in range(2))

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> torch.nn.Module | None:
        return self.lm_head


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zamba", "zamba2"])
def test_layers_that_share_one_mlp_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layers share one"):
        load(build(name, tmp_path))


@pytest.mark.slow
def test_neurons_of_the_shared_mlp_of_granite_are_those_of_transformers(tmp_path: Path) -> None:
    """Its input projection holds the gates, then the linear branch."""
    model: Any = load(build("granitemoehybrid", tmp_path))
    assert model.layout.layers[0] == (40, 4, 160)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids, gates = torch.arange(10, 22)[None], {}
    for layer, block in enumerate(plain.model.layers):
        block.shared_mlp.input_linear.register_forward_hook(
            lambda module, args, output, layer=layer: gates.update({layer: output[0, :, :40]})
        )
    with torch.no_grad():
        clean = plain(ids).logits
    seen = {layer: values for rows, layer, values in recorded(model, ids, "pre") if not rows.first}
    for layer in range(model.n_layers):
        torch.testing.assert_close(seen[layer], gates[layer], atol=1e-5, rtol=1e-5)
    off = [(layer, None, neuron) for layer in range(model.n_layers) for neuron in range(0, 40, 2)]
    with intervene(model, model.layout.mask(off), deactivate):
        edited = model.logits(ids)
    for block in plain.model.layers:
        block.shared_mlp.output_linear.weight.data[:, 0:40:2] = 0.0
    with torch.no_grad():
        expected = plain(ids).logits
    torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)
    assert (expected - clean).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("n_experts", [0, 4])
def test_hybrids_of_granite_work_to_the_end(
    n_experts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = {**architectures.SPECIAL["granitemoehybrid"], "num_local_experts": n_experts}
    monkeypatch.setitem(architectures.SPECIAL, "granitemoehybrid", special)
    outcome = tried("granitemoehybrid", tmp_path / "model")
    expected = Outcome("granitemoehybrid", tuple(JOBS), mixture=n_experts > 0)
    assert outcome == expected, outcome.why


ORDERS = {
    "mixture": ["linear_attention", "moe", "full_attention", "mlp"],
    "dense": ["linear_attention", "mlp", "full_attention", "mlp"],
    "mixer last": ["moe", "linear_attention", "mlp", "full_attention"],
}
"""Layers of a tiny Nemotron-H, each of which is a mixer, experts or an MLP."""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["mixture", "dense"])
def test_hybrids_have_neurons_in_those_layers_that_have_an_mlp(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ORDERS[order]
    monkeypatch.setitem(architectures.SPECIAL, "nemotron_h", {"layers_block_type": kinds})
    outcome = tried("nemotron_h", tmp_path / "model")
    assert outcome.done == tuple(JOBS), outcome.why
    model = load(tmp_path / "model")
    assert isinstance(model, MixtureModel)
    with_neurons = [n for n, kind in enumerate(kinds) if kind in ("moe", "mlp")]
    assert model.layers_with_neurons == with_neurons
    assert model.layout.exists.any(dim=1).nonzero().flatten().tolist() == with_neurons
    text = architectures.Trial(tmp_path / "model", model).corpora
    run = collect(model, text, keep=Keep(moments=True), progress=False)
    assert run.firing.total.sum(dim=(0, 2)).nonzero().flatten().tolist() == with_neurons
    assert run.moments.tokens.equal(run.firing.tokens.sum(0))


@pytest.mark.slow
def test_a_nan_is_noticed_where_the_last_layer_has_no_neurons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ORDERS["mixer last"]
    monkeypatch.setitem(architectures.SPECIAL, "nemotron_h", {"layers_block_type": kinds})
    model = load(build("nemotron_h", tmp_path / "model"))
    assert isinstance(model, MixtureModel)
    with torch.no_grad():
        model.parts[2][0].module.get_submodule("up_proj").weight[0] = math.nan  # type: ignore
    with pytest.raises(ValueError, match=r"a NaN or infinite activation in layer 2 \(pre\)"):
        collect(model, architectures.Trial(tmp_path / "model", model).corpora, progress=False)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mamba", "cannot be read neuron by neuron: every layer needs one MLP"),
        ("xlstm", "do not show one list of layers with an MLP in each"),
        ("pi0", "does not give layers and widths as that of a text model"),
        ("vision-encoder-decoder", "does not read text alone (You have to specify pixel_values)"),
    ],
)
def test_it_is_refused_with_one_sentence(name: str, sentence: str, tmp_path: Path) -> None:
    outcome = tried(name, tmp_path)
    assert (outcome.kind, outcome.stopped_at, outcome.done) == ("refused", "open", ())
    assert sentence in outcome.why


def test_a_model_that_does_not_continue_text_is_refused(tmp_path: Path) -> None:
    import transformers

    sizes = {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, vocab_size=tiny_models.N_VOCAB)
    ).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(t5\) does not continue text: .* Use a decoder"):
        load(tmp_path)


# ---------------------------------------------------------------- the campaign itself


@pytest.mark.slow
def test_a_job_that_fails_ends_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(trial: architectures.Trial) -> None:
        raise KeyError("hook_mlp_out")

    monkeypatch.setitem(architectures.JOBS, "find", broken)  # type: ignore[arg-type]
    outcome = tried("llama", tmp_path)
    assert outcome.done == ("open", "doctor", "count")
    assert (outcome.stopped_at, outcome.kind) == ("find", "fault")
    assert outcome.why.startswith("KeyError: 'hook_mlp_out' (test_architectures.py, broken)")


@pytest.mark.slow
def test_counts_that_are_wrong_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "interp.counting.counters.count_positive", lambda gates: (gates >= -1).sum(0)
    )
    outcome = tried("llama", tmp_path)
    assert (outcome.stopped_at, outcome.kind) == ("count", "fault")
    assert "counts differ" in outcome.why


@pytest.mark.slow
def test_a_process_that_hangs_or_dies_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "SECONDS", 1)
    monkeypatch.setattr(architectures, "tried", lambda name, folder: architectures.time.sleep(60))
    assert in_a_process("llama").why == "its process took more than 1 seconds"
    monkeypatch.setattr(architectures, "tried", lambda name, folder: architectures.os._exit(9))
    outcome = in_a_process("llama")
    assert (outcome.kind, outcome.why) == ("fault", "its process ended with code 9")


def test_the_table_says_what_works_and_why_the_others_do_not() -> None:
    outcomes = [
        Outcome("llama"),
        Outcome("mixtral", mixture=True),
        Outcome("mamba", (), "open", "no | MLP <here>", "refused"),
        Outcome("bert", (), "doctor", "attends to later tokens", "doctor"),
    ]
    page = table(outcomes)
    assert read_table(page) == outcomes
    assert "**2 of 4 work to the end**, 1 of them mixtures of experts." in page
    assert "| `mamba` | open | no \\| MLP &lt;here> |" in page
    assert (
        page.index("## They work") < page.index("## Refused") < page.index("## The doctor says no")
    )
