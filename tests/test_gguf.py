"""A GGUF file opens as the checkpoint it was made from: same logits, same token ids."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from interp.models.gguf_reading import GgufHeader, complete, llama3_divisors, read_header
from interp.models.load import load
from interp.models.neuron_model import NeuronModel

pytest.importorskip("gguf")

from tests import gguf_files
from tests.gguf_files import N_VOCAB, WORDS, model, tokenizer, write

NAMES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "bloom")
IDS = torch.randint(3, N_VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))
TEXT = "I'LL pay 1234567 for he1 (the whole thing)…  Cafe\u0301 日本語\n\n<eos>the end"

every_architecture = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYNEURON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@torch.no_grad()
def logits(own: Any) -> torch.Tensor:
    return own.logits(IDS) if isinstance(own, NeuronModel) else own(IDS).logits


def opened(path: Path) -> NeuronModel:
    return load(path, device="cpu")


# ---------------------------------------------------------------- the same numbers


@pytest.mark.slow
@every_architecture
def test_a_file_gives_the_logits_of_its_checkpoint(name: str, tmp_path: Path) -> None:
    own = model(name)
    found = opened(write(tmp_path / "model.gguf", own, WORDS.get(name, "gpt-2")))
    assert logits(own).std() > 0.3
    torch.testing.assert_close(logits(found), logits(own), rtol=0, atol=1e-5)
    assert found.dtype == torch.float32


@every_architecture
def test_a_quantized_file_gives_the_logits_of_the_rounded_weights(
    name: str, tmp_path: Path
) -> None:
    own = model(name)
    file = write(tmp_path / "model.gguf", own, WORDS.get(name, "gpt-2"), quantized=True)
    exact, found = logits(own), logits(opened(file))
    gguf_files.round_weights(own)
    assert (logits(own) - exact).abs().max() > 0.01
    torch.testing.assert_close(found, logits(own), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
        ("llama", {"head_dim": 32}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma2", {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}),
        ("gemma2", {"sliding_window": 3, "rms_norm_eps": 0.1}),
        ("gemma3", {"num_hidden_layers": 6}),  # every sixth layer reads the whole text
        ("phi3", {"sliding_window": 3}),
    ],
)
def test_settings_other_than_the_defaults_are_kept(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    own = model(name, **settings)
    found = opened(write(tmp_path / "model.gguf", own, WORDS.get(name, "gpt-2")))
    torch.testing.assert_close(logits(found), logits(own), rtol=0, atol=1e-5)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_the_frequencies_of_llama_3_are_found_in_the_file(tmp_path: Path) -> None:
    own = model("llama", rope_parameters=LLAMA3)
    assert own.model.rotary_emb.inv_freq.shape == (8,)
    plain = model("llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    assert (logits(own) - logits(plain)).abs().max() > 1e-3
    divisors = plain.model.rotary_emb.inv_freq / own.model.rotary_emb.inv_freq
    torch.testing.assert_close(torch.tensor(llama3_divisors(500000.0, 16, 8.0)), divisors)
    tensors = {"rope_freqs.weight": divisors}
    found = opened(write(tmp_path / "model.gguf", own, "llama-bpe", tensors=tensors))
    torch.testing.assert_close(logits(found), logits(own), rtol=0, atol=1e-5)
    tensors = {"rope_freqs.weight": divisors + torch.arange(8)}
    with pytest.raises(ValueError, match=r"rope_freqs\.weight, which are not those of Llama 3"):
        opened(write(tmp_path / "other.gguf", own, "llama-bpe", tensors=tensors))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_stretched_positions_are_kept(name: str, tmp_path: Path) -> None:
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}
    near = {"rope_type": "default", "rope_theta": 10000.0}
    rope = {"full_attention": linear, "sliding_attention": near} if name == "gemma3" else linear
    own = model(name, rope_parameters=rope, num_hidden_layers=6)
    changes = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    words = WORDS.get(name, "gpt-2")
    found = opened(write(tmp_path / "model.gguf", own, words, changes=changes))
    torch.testing.assert_close(logits(found), logits(own), rtol=0, atol=1e-5)
    without = opened(write(tmp_path / "without.gguf", own, words))
    assert (logits(without) - logits(own)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("kind", "layers", "width", "heads", "expected"),
    [
        ("gemma2", 26, 2304, 8, 256),
        ("gemma2", 42, 3584, 16, 256),
        ("gemma2", 46, 4608, 32, 144),
        ("gemma3", 26, 1152, 4, 256),
        ("gemma3", 62, 5376, 32, 168),
    ],
)
def test_attention_of_every_gemma_has_the_published_scale(
    kind: str, layers: int, width: int, heads: int, expected: int
) -> None:
    """Their files do not say: it is the square root of this number."""
    header = header_of(kind, {"attention.key_length": 128 if layers in (46, 62) else 256})
    cls = transformers.Gemma2Config if kind == "gemma2" else transformers.Gemma3TextConfig
    config = cls(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads)
    config.query_pre_attn_scalar = 1
    assert complete(config, header).query_pre_attn_scalar == expected


def header_of(architecture: str, entries: dict[str, Any]) -> GgufHeader:
    return GgufHeader(
        path=Path("model.gguf"),
        architecture=architecture,
        entries=entries,
        words="",
        space_first=False,
        adds={},
        sizes={},
        quantization="F32",
        frequencies=(),
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "by the rule yarn"),
        ({"rope.dimension_count": 8, "attention.key_length": 16}, "8 of 16 dimensions turn"),
        ({"rope.scaling.attn_factor": 1.19}, "ignores rope.scaling.attn_factor = 1.19"),
        ({"attention.clamp_kqv": 8.0}, "ignores attention.clamp_kqv = 8"),
        ({"logit_scale": 0.0625}, "ignores logit_scale = 0.0625"),
        ({"final_logit_softcapping": 30.0}, "ignores final_logit_softcapping = 30"),
    ],
)
def test_what_transformers_ignores_is_refused(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "model.gguf", model("llama"), "llama-bpe", changes=changes)
    with pytest.raises(ValueError, match=why) as error:
        opened(file)
    assert str(error.value).endswith("give the checkpoint it was made from.")


def test_neutral_settings_change_nothing(tmp_path: Path) -> None:
    own = model("llama")
    changes = {"logit_scale": 1.0, "attention.clamp_kqv": 0.0, "rope.scaling.type": "none"}
    read = opened(write(tmp_path / "model.gguf", own, "llama-bpe", changes=changes))
    torch.testing.assert_close(logits(read), logits(own), rtol=0, atol=1e-5)


def test_a_weight_too_many_or_too_few_is_refused(tmp_path: Path) -> None:
    own = model("llama")
    bias = {"blk.1.attn_q.bias": torch.ones(64)}
    with pytest.raises(ValueError, match=r"64 of the [\d,]+ weights have no place in it"):
        opened(write(tmp_path / "model.gguf", own, "llama-bpe", tensors=bias))
    changes = {"block_count": 4}
    with pytest.raises(ValueError, match=r"it finds no model\.layers\.3"):
        opened(write(tmp_path / "deeper.gguf", own, "llama-bpe", changes=changes))


def test_a_mixture_of_experts_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.models.gguf_checkpoint.read_model", pytest.fail)
    changes = {"expert_count": 4, "expert_used_count": 2}
    file = write(
        tmp_path / "m.gguf", model("qwen2"), "qwen2", changes=changes, architecture="qwen2moe"
    )
    with pytest.raises(ValueError, match=r"m\.gguf .* mixture of 4 experts"):
        opened(file)


# ---------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("words", ["gpt-2", "llama-bpe", "qwen2", "bloom", "smollm"])
def test_the_tokenizer_gives_the_same_ids(words: str, tmp_path: Path) -> None:
    name = "qwen2" if words == "qwen2" else "llama"
    found = opened(write(tmp_path / "model.gguf", model(name), words)).tokenizer
    own = tokenizer(words)
    assert found is not None
    assert found(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    assert found(TEXT)["input_ids"][0] == own.bos_token_id
    assert found.decode(found("the whole 日本")["input_ids"][1:]) == "the whole 日本"
    specials = ("bos_token_id", "eos_token_id", "pad_token_id", "all_special_ids")
    assert [getattr(found, key) for key in specials] == [getattr(own, key) for key in specials]
    if words != "gpt-2":
        assert own(TEXT)["input_ids"] != tokenizer("gpt-2")(TEXT)["input_ids"]


def test_sentencepiece_gives_the_same_ids(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentences = ["the house of the dog", "der Hund in dem Haus", "la casa del perro"] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    own = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    tokens = [
        (own.id_to_piece(id), own.get_score(id), kind_of(own, id)) for id in range(own.vocab_size())
    ]
    file = write(tmp_path / "model.gguf", model("llama", own.vocab_size()), tokens)
    found = opened(file)
    for text in ("the dog in der casa", "  zwei  Räume: 日本", "Haus,\nperro"):
        assert found.encode(text) == own.encode(text)
        assert found.tokenizer(text)["input_ids"] == [1, *own.encode(text)]
        assert found.decode(found.encode(text)).strip() == text.strip()


def kind_of(own: Any, id: int) -> int:
    if own.is_unknown(id):
        return gguf_files.UNKNOWN
    if own.is_control(id):
        return gguf_files.CONTROL
    return gguf_files.BYTE if own.is_byte(id) else gguf_files.NORMAL


def test_unknown_ways_of_cutting_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not know how poro-chat cuts text into words"):
        opened(write(tmp_path / "model.gguf", model("llama"), "poro-chat"))
    with pytest.raises(ValueError, match="would not cut text into words as gpt-2 does"):
        opened(write(tmp_path / "model.gguf", model("qwen2"), "gpt-2"))


def test_files_next_to_it_are_not_looked_at(tmp_path: Path) -> None:
    own = model("llama")
    file = write(tmp_path / "model.gguf", own, "llama-bpe")
    expected = opened(file)
    tokenizer("smollm").save_pretrained(tmp_path)
    model("gpt2").save_pretrained(tmp_path)
    other = write(tmp_path / "model.gguf", own, "bloom")
    found = opened(other)
    torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=0)
    assert found.tokenizer is not None
    assert found.tokenizer(TEXT)["input_ids"] == tokenizer("bloom")(TEXT)["input_ids"]


def test_the_header_says_what_the_file_holds(tmp_path: Path) -> None:
    own = model("llama")
    header = read_header(write(tmp_path / "model.gguf", own, "llama-bpe", quantized=True))
    assert header.n_weights == sum(parameter.numel() for parameter in own.parameters())
    assert (header.architecture, header.quantization) == ("llama", "Q8_0 (Q8_0, F32)")
    assert header.entries["block_count"] == 3
    assert header.adds == {"add_bos_token": True, "add_eos_token": False}
    assert replace(header, sizes={"one": 2, "two": 3}).n_weights == 5
