"""Architectures beyond those of `tiny_models`: opened by their modules, hybrids, the refused."""

from pathlib import Path

import pytest
import torch

from interp.models.load import load
from interp.models.plain_adapter import FUSED, GATED, UNGATED, parts_of
from tests import tiny_models
from tests.campaigns import architectures
from tests.campaigns.architectures import JOBS, Outcome, build, in_a_process, table, tried

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
    page = table(
        [
            Outcome("llama", tuple(JOBS)),
            Outcome("mixtral", tuple(JOBS), mixture=True),
            Outcome("mamba", (), "open", "no | MLP <here>", "refused"),
            Outcome("bert", ("open",), "doctor", "attends to later tokens", "doctor"),
        ]
    )
    assert "**2 of 4 work to the end**, 1 of them mixtures of experts." in page
    assert "| `mamba` | open | no \\| MLP &lt;here> |" in page
    assert (
        page.index("## They work") < page.index("## Refused") < page.index("## The doctor says no")
    )
