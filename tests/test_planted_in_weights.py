"""A neuron written into the weights by hand is seen by counting, editing, attribution, patching."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interp
from interp.models.load import load
from interp.text.tokens import prompt_ids
from tests import tiny_models

LAYER, NEURON = 1, 7
CLEAN, OTHER, ANSWER = "the day ou", "the day la", "qu"


def read_by_mlp(model: Any, ids: Tensor) -> Tensor:
    """What the layer's MLP reads at the last token."""
    seen: list[Tensor] = []
    mlp = model.bridge.blocks[LAYER].mlp.original_component
    handle = mlp.gate_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.logits(ids)
    handle.remove()
    return seen[0][0, -1]


@pytest.mark.slow
def test_one_neuron_is_seen_alike_by_all_that_the_library_does(tmp_path: Path) -> None:
    """Its gate is 5 at the end of one prompt and -20 at that of another, and it writes a token."""
    model: Any = load(tiny_models.build("llama", tmp_path), dtype=torch.float32)
    ids = [torch.tensor([prompt_ids(model, text)]) for text in (CLEAN, OTHER)]
    (answer,) = model.encode(ANSWER)
    with torch.no_grad():
        reads = torch.linalg.pinv(torch.stack([read_by_mlp(model, one) for one in ids]))
        model.w_gate(LAYER)[:, NEURON] = reads @ torch.tensor([5.0, -20.0])
        model.w_in(LAYER)[:, NEURON] = reads @ torch.tensor([1.0, 1.0])
        towards = model.bridge.original_model.lm_head.weight[answer]
        model.w_out(LAYER)[NEURON] = 20 * towards / towards.norm()
    planted = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    planted[LAYER, NEURON] = True

    caches = {code: model.run_with_cache(one)[1] for code, one in zip(("a", "b"), ids, strict=True)}
    last = {code: torch.arange(ids[0].shape[1])[None] == ids[0].shape[1] - 1 for code in caches}
    counted = interp.FiringStats.from_caches(caches, model=model, keep=last)
    assert counted.total[:, LAYER, NEURON].tolist() == [1, 0]

    def lost(text: Tensor, layer: int, neuron: int) -> float:
        """What the token's log probability loses without one neuron."""
        mask = torch.zeros_like(planted)
        mask[layer, neuron] = True
        before = model.logits(text)[0, -1].log_softmax(0)[answer]
        with interp.intervene(model, mask, interp.deactivate):
            return float(before - model.logits(text)[0, -1].log_softmax(0)[answer])

    effects = {neuron: lost(ids[0], LAYER, neuron) for neuron in range(NEURON - 5, NEURON + 6)}
    assert effects.pop(NEURON) > 10 * max(map(abs, effects.values()))
    assert abs(lost(ids[1], LAYER, NEURON)) < 0.1

    found = interp.integrated_gradients(model, CLEAN, ANSWER, steps=20).values
    assert divmod(int(found.argmax()), model.d_mlp) == (LAYER, NEURON)

    parts: Any = {"planted": planted, "others": ~planted}
    result = interp.patch(model, CLEAN, OTHER, {ANSWER: ANSWER}, parts)
    probability = dict(zip(result.parts, result.probability[0, :, LAYER, 0, 0], strict=True))
    clean, other = (float(model.logits(one)[0, -1].softmax(0)[answer]) for one in ids)
    assert probability["planted"] > 10 * other
    assert probability["planted"] > 0.5 * clean
    assert probability["others"] < 0.1 * clean
