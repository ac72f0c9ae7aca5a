"""Losses need no more memory for a larger vocabulary."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.models import neuron_model
from interp.models.load import load
from tests import tiny_models
from tests.tiny_models import N_VOCAB


@pytest.mark.parametrize(("most", "per_chunk"), [(1 << 26, 19), (5 * N_VOCAB, 5), (1, 1)])
def test_a_chunk_of_logits_has_a_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, per_chunk: int
) -> None:
    model = load(tiny_models.build("llama", tmp_path))
    ids = torch.arange(4, 24)[None]
    whole = model.losses(ids)
    unembed, chunks = model._unembed, []

    def counted(hidden: Tensor) -> Tensor:
        chunks.append(len(hidden))
        return unembed(hidden)

    monkeypatch.setattr(model, "_unembed", counted)
    monkeypatch.setattr(neuron_model, "_MOST_LOGITS", most)
    assert torch.allclose(model.losses(ids), whole)
    assert (max(chunks), sum(chunks)) == (per_chunk, 19)
