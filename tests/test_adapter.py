"""An adapter gives in plain PEFT what the hooks give, and what cannot be one is refused."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from interp.cli import main
from interp.interventions.bake import bake
from interp.interventions.bake_card import read_edit
from interp.interventions.edits import Change, Edit, deactivate, intervene, override, push, scale
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.selections.neuron_selection import NeuronSelection
from tests import test_bake
from tests.test_bake import (
    WITH_BIAS,
    assert_close,
    every_model,
    nothing_is_left,
    plain,
    some_ids,
    some_units,
    some_values,
)
from tests.tiny_models import N_LAYERS

checkpoint, open_model, llama = test_bake.checkpoint, test_bake.open_model, test_bake.llama
peft = pytest.importorskip("peft")


def with_adapter(base: Path, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(plain(base, attn_implementation="eager"), folder).eval()


@torch.no_grad()
def assert_same(
    model: NeuronModel, base: Path, change: Change, out: Path, tolerance: float = 1e-5
) -> None:
    """PEFT against the hooks; merged, against the checkpoint that `bake` writes."""
    assert change.to_lora(model, out) == out
    ids = some_ids()
    before = model.logits(ids)
    with model.hooks(change.hooks(model)):
        hooked = model.logits(ids)
    assert (hooked - before).abs().max() > 0.01 * before.abs().max(), "nothing to lose"
    adapted = with_adapter(base, out)
    assert_close(adapted(ids).logits, hooked, tolerance)
    with adapted.disable_adapter():
        assert_close(adapted(ids).logits, before, tolerance)
    baked = plain(bake(model, change.units, change.edit, out.with_name(f"{out.name}-baked")))
    merged = adapted.merge_and_unload().state_dict()
    for name, tensor in baked.state_dict().items():
        assert_close(merged[name], tensor, 1e-6)


@pytest.mark.slow
@every_model
def test_neurons_off_or_scaled_are_an_adapter(name, open_model, checkpoint, tmp_path):
    model, base = open_model(name), checkpoint(name)
    units = some_units(model)
    assert_same(model, base, Change(units, deactivate), tmp_path / "off")
    assert_same(model, base, Change(units, scale(-1.7)), tmp_path / "turned")
    config = json.loads((tmp_path / "off" / "adapter_config.json").read_text())
    n_units = units.sum(dim=1).tolist()
    assert n_units[0] == 0
    assert len(config["target_modules"]) == N_LAYERS - 1, "layers without units are left out"
    assert config["r"] == max(n_units)
    assert list(config["rank_pattern"].values()) == [n for n in n_units[1:] if n != max(n_units)]
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert config["lora_alpha"] == config["r"]
    tensors = load_file(tmp_path / "off" / "adapter_model.safetensors")
    for key, tensor in tensors.items():
        assert tensor.ndim == 2, key
        if "lora_A" in key:  # one-hot
            assert set(tensor.unique().tolist()) == {0.0, 1.0}
            assert tensor.sum(dim=1).eq(1).all()


@pytest.mark.slow
@every_model
@pytest.mark.parametrize("attention", ["native", "hooked"])
def test_units_of_every_projection_are_an_adapter(
    name, attention, open_model, checkpoint, tmp_path
):
    """Inputs and outputs of the same matrix too: `post` and `mlp_out`."""
    model = open_model(name, attention)
    sites: Any = ("pre", "post", "mlp_out") if attention == "native" else ("q", "v", "attn_out")
    sites = [s for s in sites if not (name in test_bake.NORMED and s in test_bake.SUMMED)]
    biased = name in WITH_BIAS or (name == "qwen2" and attention == "hooked")
    if name == "qwen2" and attention == "hooked":
        sites.remove("attn_out")  # the only one without a bias
    units = {site: some_units(model, site) for site in sites}
    change = Change(units, scale(-1.7))
    assert_same(model, checkpoint(name), change, tmp_path / "scaled", 1e-4)
    config = json.loads((tmp_path / "scaled" / "adapter_config.json").read_text())
    assert config["lora_bias"] == biased


@every_model
def test_constants_need_a_bias(name, open_model, checkpoint, tmp_path):
    model = open_model(name)
    change = Change(some_units(model), override(some_values(model)))
    if name in WITH_BIAS:
        assert_same(model, checkpoint(name), change, tmp_path / "held", 1e-4)
        card = (tmp_path / "held" / "README.md").read_text()
        assert "which PEFT loads and vLLM does not" in card
    else:
        with pytest.raises(
            ValueError, match=r"has no .*bias.*(`interp bake`\)|a control vector; in Python, .*)\.$"
        ):
            change.to_lora(model, tmp_path / "held")
        assert nothing_is_left(tmp_path)


@pytest.mark.slow
def test_a_push_alone_has_rank_one_and_a_bias(open_model, checkpoint, tmp_path):
    model = open_model("gpt2")
    units, values = some_units(model, "mlp_out"), some_values(model, "mlp_out")
    change = Change({"mlp_out": units}, push({"mlp_out": values}))
    assert_same(model, checkpoint("gpt2"), change, tmp_path / "push", 1e-4)


def test_adapters_of_several_languages_share_one_model(llama, checkpoint, tmp_path):
    changes = {
        code: Change(some_units(llama, seed=seed), deactivate) for seed, code in enumerate("abc")
    }
    for code, change in changes.items():
        change.to_lora(llama, tmp_path / code)
    model = with_adapter(checkpoint("llama"), tmp_path / "a")
    for code in "bc":
        model.load_adapter(tmp_path / code, adapter_name=code)
    for code in "cab":
        model.set_adapter("default" if code == "a" else code)
        change = changes[code]
        with torch.no_grad(), intervene(llama, change.units, change.edit):
            assert_close(model(some_ids()).logits, llama.logits(some_ids()), 1e-5)


def test_vllm_reads_the_same_change(llama, open_model, tmp_path):
    """It multiplies every module by alpha / r of the whole adapter, and reads no pattern; what it
    refuses is in `PEFTHelper`, and the ranks that it serves in `MaxLoRARanks`, of its API docs."""
    for name, model in (("llama", llama), ("gpt2", open_model("gpt2"))):
        folder = Change(some_units(model), scale(-1.7)).to_lora(model, tmp_path / name)
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["r"] <= 512
        assert config["rank_pattern"], "all layers have the same rank"
        assert config["lora_alpha"] / config["r"] == 1
        for module, rank in config["rank_pattern"].items():
            assert config["alpha_pattern"][module] / rank == 1
        assert config["bias"] == "none"
        unread = ("modules_to_save", "use_dora", "use_rslora", "lora_bias")
        assert not any(config.get(key) for key in unread)
        tensors = load_file(folder / "adapter_model.safetensors")
        for key, tensor in tensors.items():
            assert re.fullmatch(r"base_model\.model\..+\.lora_[AB]\.weight", key)
            assert min(tensor.shape) <= config["r"]
        served = re.search(r"--max-lora-rank (\d+)", (folder / "README.md").read_text())
        assert served
        assert config["r"] <= int(served[1])
        assert int(served[1]) in (1, 8, 16, 32, 64, 128, 256, 320, 512)


def test_load_merges_an_adapter_of_many_ranks(llama, checkpoint, tmp_path):
    change = Change(some_units(llama), scale(-1.7))
    folder = change.to_lora(llama, tmp_path / "turned")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["rank_pattern"], "all layers have the same rank"
    with pytest.raises(
        ValueError, match=r"names no base, .* as base_model_name_or_path; in Python, load"
    ):
        load(folder)
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(checkpoint("llama"))}))
    with torch.no_grad(), llama.hooks(change.hooks(llama)):
        hooked = llama.logits(some_ids())
    assert_close(load(folder, device="cpu").logits(some_ids()), hooked, 1e-5)


def run_card(base: Path, folder: Path, python: str, *packages: str) -> torch.Tensor:
    """Logits that the program on an adapter's card gives, run by `python` beside the base."""
    card = (folder / "README.md").read_text()
    program = card.split("```python\n")[1].split("```")[0]
    if not (folder.parent / base.name).exists():
        (folder.parent / base.name).symlink_to(base)
    rest = f"""
import importlib.util, sys, torch
torch.save(model.eval()(torch.tensor({some_ids().tolist()})).logits.detach(), "logits.pt")
assert not any(name == "interp" or name.startswith("interp.") for name in sys.modules)
for package in {packages}:
    assert importlib.util.find_spec(package) is None, package
"""
    env = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "HOME": str(folder.parent)}
    command = [python, "-c", program + rest]
    subprocess.run(command, cwd=folder.parent, env=env, check=True)
    return torch.load(folder.parent / "logits.pt")


@pytest.mark.slow
def test_it_loads_in_a_process_without_this_package(llama, checkpoint, tmp_path):
    """By the program on its card."""
    change = Change(some_units(llama), deactivate)
    change.to_lora(llama, tmp_path / "off", note="By hand.")
    card = (tmp_path / "off" / "README.md").read_text()
    assert "By hand." in card
    assert "base_model" not in card
    assert "--max-lora-rank 64" in card
    logits = run_card(checkpoint("llama"), tmp_path / "off", sys.executable)
    with torch.no_grad(), intervene(llama, change.units, change.edit):
        assert_close(logits, llama.logits(some_ids()), 1e-5)
    for file in ("README.md", "adapter_config.json", "interp_bake.json"):
        assert str(checkpoint("llama").parent) not in (tmp_path / "off" / file).read_text()
    units, edit = read_edit(tmp_path / "off")
    assert torch.equal(units["post"], some_units(llama))
    assert edit.factor == 0


@pytest.mark.campaign
def test_it_loads_in_an_environment_without_this_package(open_model, checkpoint, tmp_path):
    """A new environment with torch, transformers and PEFT, of the lock, and no more."""
    lock = Path(__file__).parents[1] / "constraints" / "dev.txt"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    python = str(tmp_path / "environment" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--constraint", lock]
    subprocess.run([*install, "torch", "transformers", "peft"], check=True)
    for name in ("llama", "gpt2", "phi3"):
        model = open_model(name)
        change = Change(some_units(model), scale(-1.7))
        change.to_lora(model, tmp_path / name / "edited")
        ours = ("interp", "transformer_lens", "jaxtyping")
        logits = run_card(checkpoint(name), tmp_path / name / "edited", python, *ours)
        with torch.no_grad(), intervene(model, change.units, change.edit):
            assert_close(logits, model.logits(some_ids()), 1e-5)


def test_the_command_writes_the_adapter_of_a_selection(llama, checkpoint, tmp_path, capsys):
    units = torch.stack([some_units(llama, seed=seed) for seed in (0, 1)])
    NeuronSelection(units, ("de", "en")).to_json(tmp_path / "neurons.json")
    command = ["adapter", str(tmp_path / "neurons.json"), str(checkpoint("llama"))]
    main([*command, "--language", "en", "--out", str(tmp_path / "out"), "--factor", "2"])
    assert f"{int(units[1].sum())} neurons of en: scale by 2." in capsys.readouterr().out
    model = with_adapter(checkpoint("llama"), tmp_path / "out")
    with torch.no_grad(), intervene(llama, units[1], scale(2.0)):
        assert_close(model(some_ids()).logits, llama.logits(some_ids()), 1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "those of English in neurons.json" in card
    assert str(tmp_path) not in card


def test_what_no_adapter_holds_is_refused(llama, open_model, tmp_path, monkeypatch):
    units = some_units(llama)
    n_units = int(units[1].sum())
    off = Change(units, deactivate)
    other = torch.zeros(N_LAYERS, 7, dtype=torch.bool)
    other[1, 1] = True
    refused: dict[str, tuple[Change, dict[str, Any]]] = {
        rf"^{n_units} units of one matrix are edited in layer 1 \(model\.layers\.1\.mlp\.down_proj"
        rf"\.weight\), and an adapter of rank 3 holds 3: choose": (off, {"largest_rank": 3}),
        "tokens='last', and weights act at every position": (Change(units, deactivate, "last"), {}),
        "use the model it was made with": (Change(other, deactivate), {}),
        "no unit is chosen": (Change(torch.zeros_like(units), deactivate), {}),
        "resid_post is a sum over layers": (
            Change({"resid_post": some_units(llama, "resid_post")}, scale(2.0)),
            {},
        ),
        "adds to act": (
            Change({"act": units}, Edit("more", 1.0, {"act": some_values(llama)})),
            {},
        ),
    }
    for match, (change, settings) in refused.items():
        with pytest.raises(ValueError, match=match) as error:
            change.to_lora(llama, tmp_path / "out", **settings)
        assert ". " not in str(error.value)
        assert nothing_is_left(tmp_path)
    config = llama.bridge.original_model.config
    with monkeypatch.context() as patch:
        patch.setattr(config, "quantization_config", {"bits": 4}, raising=False)
        with pytest.raises(ValueError, match=r"is quantized, .* start from the full-precision"):
            off.to_lora(llama, tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # as if the disk filled up meanwhile
    try:
        with pytest.raises(OSError, match=r"out was not written .* nothing is left of it: make"):
            off.to_lora(llama, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert nothing_is_left(tmp_path)
    usage = SimpleNamespace(free=10)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match=r"was not written \(it needs .* bytes and 10 are free"):
            off.to_lora(llama, tmp_path / "out")
    assert nothing_is_left(tmp_path)
    off.to_lora(llama, tmp_path / "out")
    with pytest.raises(ValueError, match="out exists: name a new folder"):
        off.to_lora(llama, tmp_path / "out")


def test_a_wrong_adapter_is_not_written(llama, tmp_path, monkeypatch):
    """What was written is run, and compared with the hooks."""
    from interp.interventions import adapter

    written = adapter._tensors

    def damaged(factors: Any) -> Any:
        return {name: tensor * 1.1 for name, tensor in written(factors).items()}

    monkeypatch.setattr(adapter, "_tensors", damaged)
    with pytest.raises(ValueError, match="The adapter does not do what the hooks do"):
        Change(some_units(llama), deactivate).to_lora(llama, tmp_path / "out")
    assert nothing_is_left(tmp_path)
