"""Pretrained models against plain Hugging Face with torch hooks; skipped where not fetched.

python -m experiments.real_models fetch gemma3-270m
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from transformers import AutoModelForCausalLM

import interp
from experiments.real_models import MODELS, path_of
from interp.models.gguf_checkpoint import checkpoint_of
from interp.text.tokens import prompt_ids

LANGUAGES, N_TOKENS, BLOCK = ("de", "ja"), 1536, 128
PROMPT, ANSWER = "The capital of Japan is", " Tokyo"


@pytest.fixture(scope="module", params=MODELS)
def file(request: pytest.FixtureRequest) -> Path:
    file = path_of(request.param)
    if not file.exists():
        pytest.skip(f"{file} is not fetched")
    return file


@pytest.fixture(scope="module")
def model(file: Path) -> interp.NeuronModel:
    return interp.load(file, dtype=torch.float32)


@pytest.fixture(scope="module")
def plain(file: Path) -> Iterator[Any]:
    """The same weights as Hugging Face opens them."""
    with checkpoint_of(file) as (folder, _):
        yield AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(
            False
        )


@pytest.fixture(scope="module")
def text(model: interp.NeuronModel) -> interp.Corpora:
    folder = Path(interp.__file__).parent / "babel" / "parallel"
    return interp.read_corpora(
        folder, LANGUAGES, model, block_length=BLOCK, tokens=N_TOKENS, n_shards=1, progress=False
    )


@contextmanager
def hooked(plain: Any, part: str, hook: Callable[..., Any], before: bool = False) -> Iterator[None]:
    """Within the block, `hook(layer, ...)` runs after, or before, that part of every MLP."""
    handles = []
    for layer, block in enumerate(plain.model.layers):
        module = getattr(block.mlp, part)
        register = module.register_forward_pre_hook if before else module.register_forward_hook

        def run(*given: Any, layer: int = layer) -> Any:
            return hook(layer, *given)

        handles.append(register(run))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_losses(plain: Any, ids: Tensor) -> Tensor:
    logits = plain(ids, use_cache=False).logits[:, :-1].double()  # sums over 262,144 tokens
    surprise = -logits.log_softmax(-1).gather(2, rearrange(ids[:, 1:], "row pos -> row pos 1"))
    return rearrange(surprise, "row pos 1 -> row pos").float()


def test_counts_are_those_of_plain_hooks(
    model: interp.NeuronModel, plain: Any, text: interp.Corpora
) -> None:
    firing = interp.collect(model, text, progress=False).firing
    tokens = dict(zip(firing.languages, firing.tokens.sum(0).tolist(), strict=True))
    assert sum(tokens.values()) > 2900
    size = (len(plain.model.layers), plain.config.intermediate_size)
    assert firing.fired.shape[2:] == size
    for language, fired in zip(firing.languages, firing.fired.sum(0), strict=True):
        rows = text.rows[language]
        keep = text.keep(rows.ids, rows.length)
        counts = torch.zeros(size, dtype=torch.int64)

        def count(layer: int, module: Any, args: Any, gates: Tensor) -> None:
            counts[layer] += (gates[keep] > 0).sum(0)  # noqa: B023

        with torch.inference_mode(), hooked(plain, "gate_proj", count):
            plain.model(rows.ids.long(), use_cache=False)
        assert torch.equal(fired, counts)
        assert tokens[language] == keep.sum()


def test_an_edit_is_that_of_plain_hooks(
    model: interp.NeuronModel, plain: Any, text: interp.Corpora
) -> None:
    off = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    off[[0, 9, -1], :200] = True
    ids = text.rows["de"].ids[:2].long()

    def silence(layer: int, module: Any, args: Any) -> Any:
        return (args[0].masked_fill(off[layer], 0),)

    with torch.inference_mode():
        before = model.losses(ids)
        with interp.intervene(model, off, interp.deactivate):
            ours = model.losses(ids)
        assert torch.equal(model.losses(ids), before)
        assert torch.allclose(before, plain_losses(plain, ids), atol=1e-4)
        with hooked(plain, "down_proj", silence, before=True):
            theirs = plain_losses(plain, ids)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert (ours - before).abs().mean() > 0.01


def test_an_attribution_is_what_plain_hooks_give(model: interp.NeuronModel, plain: Any) -> None:
    """Of each neuron by its gradient, of each layer by switching it off at the last token.

    Integrated gradients of Gemma 3 do not add up in few steps: a norm follows the MLP, so that all
    that changes on the way from zero changes in its first step.
    """
    ids = prompt_ids(model, PROMPT)
    answer = model.encode(ANSWER)[0]
    with pytest.warns(UserWarning, match="do not add up"):
        result = interp.integrated_gradients(model, ids, answer, steps=2, quantity="logit")

    def logit(silent: int | None = None) -> float:
        def silence(layer: int, module: Any, args: Any) -> Any:
            values = args[0].clone()
            values[:, -1] *= layer != silent
            return (values,)

        with torch.inference_mode(), hooked(plain, "down_proj", silence, before=True):
            return plain(torch.tensor([ids]), use_cache=False).logits[0, -1, answer].item()

    change = torch.tensor([logit() - logit(layer) for layer in range(model.n_layers)])
    assert torch.allclose(result.change, change, atol=1e-3)
    assert change.abs().max() > 1

    outputs: dict[int, Any] = {}

    def remember(layer: int, module: Any, args: Any) -> None:
        args[0].retain_grad()
        outputs[layer] = args[0]

    plain.get_input_embeddings().requires_grad_(True)
    with torch.enable_grad(), hooked(plain, "down_proj", remember, before=True):
        plain(torch.tensor([ids]), use_cache=False).logits[0, -1, answer].backward()
    by_layer = [(outputs[layer] * outputs[layer].grad)[0, -1] for layer in range(model.n_layers)]
    by_neuron = torch.stack(by_layer).detach()
    plain.get_input_embeddings().requires_grad_(False)
    plain.zero_grad()
    ours = interp.prompts.gradient_times_activation(model, ids, answer, "logit")
    assert torch.allclose(ours, by_neuron, atol=1e-4)
    assert by_neuron.abs().max() > 0.01
