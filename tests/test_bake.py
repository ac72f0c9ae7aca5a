"""A baked checkpoint does what the hooks do, says so, and nothing half-written is ever left."""

import functools
import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.repocard import metadata_load
from safetensors.torch import load_file
from torch import Tensor

from interp.interventions.bake import TOLERANCE, bake
from interp.interventions.bake_card import FACTS, read_edit, selection_hash
from interp.interventions.edits import Edit, Site, deactivate, intervene, override, push, scale
from interp.models.load import load, wrap
from interp.models.neuron_model import NeuronModel
from tests import tiny_models
from tests.tiny_models import CONFIGS, N_LAYERS, N_VOCAB

WITH_BIAS = ("bloom", "xglm", "opt", "phi", "gpt2", "pythia")
BY_CONFIG = ("llama", "llama_mha")
NORMED = ("gemma2", "gemma3")
MLP_BIAS = (*WITH_BIAS, *BY_CONFIG)
ATTENTION_BIAS = (*MLP_BIAS, "qwen3", "gemma", "gemma2", "gemma3")
MLP: tuple[Site, ...] = ("pre", "pre_linear", "act", "mlp_out")
ATTENTION: tuple[Site, ...] = ("q", "k", "v", "attn_out")
SUMMED: tuple[Site, ...] = ("mlp_out", "attn_out")

every_model = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def build(name: str) -> Path:
        return tiny_models.build(name, tmp_path_factory.mktemp("checkpoint"))

    return build


@pytest.fixture(scope="module")
def open_model(checkpoint: Callable[[str], Path]) -> Callable[..., NeuronModel]:
    @functools.cache
    def open_once(name: str, attention: str = "native") -> NeuronModel:
        return load(checkpoint(name), attention=attention, device="cpu")

    return open_once


@pytest.fixture
def llama(open_model: Callable[..., NeuronModel]) -> NeuronModel:
    return open_model("llama")


def some_ids(batch: int = 2, length: int = 20, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(tiny_models.SPECIAL), N_VOCAB, (batch, length), generator=generator)


def some_units(model: NeuronModel, site: Site = "post", seed: int = 0) -> Tensor:
    """A fifth of the units of every layer but the first."""
    width = model.width(0, "post" if site == "act" else site)
    generator = torch.Generator().manual_seed(seed)
    units = torch.rand(model.n_layers, width, generator=generator) < 0.2
    units[0] = False
    return units


def some_values(model: NeuronModel, site: Site = "post", seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = model.width(0, "post" if site == "act" else site)
    return torch.randn(model.n_layers, width, generator=generator)


def plain(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def assert_close(logits: Tensor, reference: Tensor, tolerance: float) -> None:
    assert (logits - reference).abs().max() <= tolerance * reference.abs().max()


def assert_same(model: NeuronModel, units: Any, edit: Edit, out: Path, tolerance: float) -> None:
    """Bake, and compare with the hooks in plain Hugging Face: logits and greedy text."""
    assert bake(model, units, edit, out) == out
    implementation = model.bridge.original_model.config._attn_implementation
    baked = plain(out, attn_implementation=implementation)
    ids, prompt = some_ids(), some_ids(length=6, seed=5)
    mask = torch.ones_like(prompt)
    mask[0, :2] = 0
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": tiny_models.PAD}
    with torch.no_grad():
        before = model.logits(ids)
        with intervene(model, units, edit):
            hooked, text = model.logits(ids), model.continuations(prompt, mask, **settings)
        assert (hooked - before).abs().max() > 0.01 * before.abs().max(), "nothing to lose"
        assert_close(baked(ids).logits, hooked, tolerance)
        assert torch.equal(baked.generate(prompt, attention_mask=mask, **settings), text)
        assert torch.equal(model.logits(ids), before), "the model itself has changed"


def nothing_is_left(folder: Path) -> bool:
    return not any(folder.iterdir())


# What is written is what the hooks do


@pytest.mark.slow
@every_model
def test_neurons_that_are_off_or_scaled_are_written_exactly(name, open_model, tmp_path):
    model = open_model(name)
    assert_same(model, some_units(model), deactivate, tmp_path / "off", 0.0)
    assert_same(model, some_units(model), scale(-1.7), tmp_path / "turned", 1e-6)


@every_model
def test_constants_are_written_where_there_can_be_a_bias_and_refused_elsewhere(
    name, open_model, tmp_path
):
    model = open_model(name)
    units, edit = some_units(model), override(some_values(model))
    if name in MLP_BIAS:
        assert_same(model, units, edit, tmp_path / "constant", 1e-5)
    else:
        with pytest.raises(ValueError, match=r"has no .*down_proj\.bias .* use intervene"):
            bake(model, units, edit, tmp_path / "constant")
        assert nothing_is_left(tmp_path)


@pytest.mark.slow
@every_model
@pytest.mark.parametrize("attention", ["native", "hooked"])
def test_units_of_every_projection_are_written_or_refused(name, attention, open_model, tmp_path):
    model = open_model(name, attention)
    sites = [
        site
        for site in (MLP if attention == "native" else ATTENTION)
        if (model.gated or site != "pre_linear") and not (name in NORMED and site in SUMMED)
    ]
    units = {site: some_units(model, site) for site in sites}
    values = {site: some_values(model, site) for site in sites}
    assert_same(model, units, scale(-1.7), tmp_path / "scaled", 1e-5)
    held, pushed = Edit("hold", 0.0, values), Edit("push", 0.5, values)
    biased = {site for site in sites if name in (MLP_BIAS if site in MLP else ATTENTION_BIAS)}
    if name == "qwen2":
        biased = {"q", "k", "v"} & set(sites)
    if biased:
        assert_same(model, {site: units[site] for site in biased}, held, tmp_path / "held", 1e-5)
        without_act = {site: units[site] for site in biased if site != "act" or not model.gated}
        assert_same(model, without_act, pushed, tmp_path / "pushed", 1e-5)
    for site in set(sites) - biased:
        with pytest.raises(ValueError, match="nor can its config switch one on"):
            bake(model, {site: units[site]}, held, tmp_path / "refused")


@pytest.mark.parametrize("name", NORMED)
def test_what_comes_out_of_a_norm_is_refused(name, open_model, tmp_path):
    for site, attention in (("mlp_out", "native"), ("attn_out", "hooked")):
        model = open_model(name, attention)
        with pytest.raises(ValueError, match=r"comes out of a norm, .* before the norm"):
            bake(model, {site: some_units(model, site)}, scale(0.5), tmp_path / "out")
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("gpt2", ("mlp_out", "act", "post", "pre")),
        ("llama", ("mlp_out", "post", "pre_linear", "pre")),
    ],
)
def test_edits_on_both_sides_of_a_matrix_and_twice_on_one_go_together(
    name, sites, open_model, tmp_path
):
    model = open_model(name)
    units = {site: some_units(model, site) for site in sites}  # the same neurons at all of them
    values = {site: some_values(model, site, ord(site[0])) for site in sites}
    edit = Edit("all", 0.5, values)
    assert_same(model, units, edit, tmp_path / "one way", 1e-5)
    turned = {site: units[site] for site in reversed(sites)}
    assert_same(model, turned, edit, tmp_path / "the other", 1e-5)


def test_gates_are_held_whatever_is_done_before_and_after_them(llama, tmp_path):
    sites: tuple[Site, ...] = ("post", "act", "pre", "pre_linear")
    units = {site: some_units(llama, site) for site in sites if site != "post"}
    units["post"] = some_units(llama, seed=6) & ~units["act"]
    values = {site: some_values(llama, site, len(site)) for site in sites}
    assert_same(llama, units, Edit("held", 0.0, values), tmp_path / "out", 1e-5)


@pytest.mark.parametrize(("name", "columns_are_rows"), [("gemma2", False), ("gpt2", True)])
def test_the_chosen_columns_change_and_not_a_bit_else(
    name, columns_are_rows, open_model, checkpoint, tmp_path
):
    units = torch.zeros(N_LAYERS, open_model(name).d_mlp, dtype=torch.bool)
    units[1, [3, 40]] = True
    bake(open_model(name), units, scale(3.0), tmp_path / "out")
    before = load_file(checkpoint(name) / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(changed) == 1
    assert ".1.mlp." in changed[0]
    old, new = before[changed[0]], after[changed[0]]
    if columns_are_rows:
        old, new = old.T, new.T
    assert torch.equal(new[:, [3, 40]], 3 * old[:, [3, 40]])
    assert (new != old).any(dim=0).nonzero().flatten().tolist() == [3, 40]


def test_baking_twice_composes_and_the_second_card_names_the_first(llama, tmp_path):
    units = some_units(llama)
    bake(llama, units, scale(0.5), tmp_path / "once")
    once = load(tmp_path / "once", device="cpu")
    other = some_units(llama, seed=9)
    bake(once, other, override(some_values(llama)), tmp_path / "twice")
    both = intervene(llama, units, scale(0.5))
    with torch.no_grad(), both, intervene(llama, other & ~units, override(some_values(llama))):
        with intervene(llama, other & units, override(0.5 * some_values(llama))):
            hooked = llama.logits(some_ids())
        assert_close(plain(tmp_path / "twice")(some_ids()).logits, hooked, 1e-5)
    facts = json.loads((tmp_path / "twice" / FACTS).read_text())
    assert facts["source was itself baked"]["edit"]["name"] == "scale by 0.5"
    assert "edited before: scale by 0.5" in (tmp_path / "twice" / "README.md").read_text()


# What travels along


def test_a_baked_folder_opens_anywhere_with_its_tokenizer_and_settings(checkpoint, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoint("llama"), source)
    transformers.GenerationConfig(max_new_tokens=7, bos_token_id=1).save_pretrained(source)
    model = load(source, device="cpu")
    out = bake(model, some_units(model), deactivate, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("the quick")["input_ids"] == model.tokenizer("the quick")["input_ids"]
    assert transformers.GenerationConfig.from_pretrained(out).max_new_tokens == 7
    old, new = (json.loads((each / "config.json").read_text()) for each in (source, out))
    assert new == old
    again = load(out, device="cpu")
    with torch.no_grad():
        assert torch.equal(again.logits(some_ids()), plain(out)(some_ids()).logits)
    assert again.fingerprint["tokenizer"] == model.fingerprint["tokenizer"]
    assert again.fingerprint["weights"] != model.fingerprint["weights"]


def test_a_bias_that_was_not_there_is_zero_but_where_it_holds_a_constant(llama, tmp_path):
    units = torch.zeros(N_LAYERS, llama.d_mlp, dtype=torch.bool)
    units[1, 5] = True
    bake(llama, units, override(some_values(llama)), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mlp_bias"] is True
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    biases = {name for name in tensors if name.endswith("bias")}
    assert len(biases) == 3 * N_LAYERS
    filled = {name for name in biases if tensors[name].any()}
    assert filled == {"model.layers.1.mlp.down_proj.bias"}
    assert not llama.bridge.original_model.config.mlp_bias
    assert "The config has mlp_bias on" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_of_the_model_is_kept(dtype, checkpoint, tmp_path):
    model = load(checkpoint("llama"), dtype=dtype, device="cpu")
    units, edit = some_units(model), Edit("hold", 0.0, {"post": some_values(model)})
    bake(model, units, edit, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    check = json.loads((tmp_path / "out" / FACTS).read_text())["check"]
    assert check["distance"] < check["tolerance"] == TOLERANCE[dtype] < check["effect"]


def test_a_wrapped_bridge_is_baked_too(checkpoint, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    model = wrap(TransformerBridge.boot_transformers(str(checkpoint("llama_mha")), device="cpu"))
    assert_same(model, some_units(model), scale(-1.7), tmp_path / "out", 1e-5)
    fused = wrap(TransformerBridge.boot_transformers(str(checkpoint("bloom")), device="cpu"))
    with pytest.raises(ValueError, match=r"holds no weights for .*query_key_value\.weight"):
        bake(fused, some_units(fused), scale(-1.7), tmp_path / "fused")


# What the folder says about itself


def test_the_card_says_what_was_done(llama, checkpoint, tmp_path):
    units = {"post": some_units(llama), "mlp_out": some_units(llama, "mlp_out")}
    edit = push({site: some_values(llama, site) for site in units}, 2.0, "more of it")
    bake(llama, units, edit, tmp_path / "out", prompt="the queen", note="By hand.")
    card = (tmp_path / "out" / "README.md").read_text()
    facts = json.loads((tmp_path / "out" / FACTS).read_text())
    for site, mask in units.items():
        row = f"| {site} | 1: {mask[1].sum()}, 2: {mask[2].sum()} |"
        assert row in card
    n_units = sum(mask.sum() for mask in units.values())
    for part in (
        f"{n_units} of its units edited: **more of it**",
        "By hand.",
        '"the queen"',
        checkpoint("llama").name,
        llama.fingerprint["weights"],
        facts["date"],
        selection_hash(units),
        selection_hash(units, edit),
        f"transformers {transformers.__version__}",
    ):
        assert part in card, part
    assert "base_model" not in card, "a folder is no name on the hub"
    assert facts["source"] == llama.fingerprint | {"name": checkpoint("llama").name}
    for file in (tmp_path / "out").glob("*.[jm][sd]*"):
        assert str(checkpoint("llama").parent) not in file.read_text(), "a path of this machine"
    assert facts["selection hash"] == selection_hash(units)


def test_the_card_keeps_the_terms_of_the_source(checkpoint, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(checkpoint("llama"), folder)
    (folder / "README.md").write_text(
        "---\nlicense: mit\nlanguage: [de, 'no']\nbase_model: one/two\ntags: [a]\n---\nText.\n"
    )
    model = load(folder, device="cpu")
    bake(model, some_units(model), deactivate, tmp_path / "out")
    assert metadata_load(tmp_path / "out" / "README.md") == {
        "library_name": "transformers",
        "tags": ["polyneuron"],
        "base_model": "one/two",
        "license": "mit",
        "language": ["de", "no"],
    }


def test_the_program_on_the_card_runs(llama, checkpoint, tmp_path, monkeypatch, capsys):
    bake(llama, some_units(llama), deactivate, tmp_path / "out")
    (tmp_path / checkpoint("llama").name).symlink_to(checkpoint("llama"))
    card = (tmp_path / "out" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {})
    distance = re.findall(r"tensor\((.+)\)", capsys.readouterr().out)
    assert float(distance[0]) < 1e-5


def test_a_check_that_could_not_fail_is_called_so(llama, tmp_path):
    units = torch.zeros(N_LAYERS, llama.d_mlp, dtype=torch.bool)
    units[1, 5] = True
    bake(llama, units, scale(1.000001), tmp_path / "little")
    bake(llama, units, scale(10.0), tmp_path / "much")
    little, much = ((tmp_path / name / "README.md").read_text() for name in ("little", "much"))
    assert "could not reveal a mistake" in " ".join(little.split())
    assert "could not reveal a mistake" not in " ".join(much.split())


def test_the_folder_holds_all_it_takes_to_repeat_the_edit(llama, tmp_path):
    units = {"post": some_units(llama), "pre": some_units(llama, seed=4)}
    edit = Edit("hold", 0.25, {site: some_values(llama) for site in units}, "pre")
    bake(llama, units, edit, tmp_path / "out")
    again, repeated = read_edit(tmp_path / "out")
    assert {site: mask.tolist() for site, mask in again.items()} == {
        site: mask.tolist() for site, mask in units.items()
    }
    assert (repeated.name, repeated.factor, repeated.site) == (edit.name, edit.factor, edit.site)
    assert selection_hash(again, repeated) == selection_hash(units, edit)
    with torch.no_grad(), intervene(llama, again, repeated):
        assert_close(plain(tmp_path / "out")(some_ids()).logits, llama.logits(some_ids()), 1e-5)
    with pytest.raises(FileNotFoundError, match="was not made by"):
        read_edit(tmp_path)
    (tmp_path / FACTS).write_text('{"format": "polyneuron bake 99"}')
    with pytest.raises(ValueError, match="use the version that its card names"):
        read_edit(tmp_path)


def test_the_hash_knows_the_units_and_what_becomes_of_them_and_nothing_else(generator):
    mask = torch.rand(2, 9, generator=generator) < 0.5
    values = torch.randn(2, 9, generator=generator)
    other, elsewhere, here = mask.clone(), values.clone(), values.clone()
    other[1, 2] ^= True
    elsewhere[~mask] = 7.0
    here[mask] = 7.0
    assert selection_hash({"post": mask}) == selection_hash({"post": mask.clone()})
    assert selection_hash({"post": mask}) != selection_hash({"post": other})
    assert selection_hash({"post": mask}) != selection_hash({"act": mask})
    edit = override(values)
    assert selection_hash({"post": mask}, edit) == selection_hash(
        {"post": mask}, override(elsewhere)
    )
    assert selection_hash({"post": mask}, edit) != selection_hash({"post": mask}, override(here))
    assert selection_hash({"post": mask}, scale(0.0)) != selection_hash({"post": mask}, scale(2.0))


# What is refused, and what is left of it


def test_a_folder_that_exists_is_left_as_it_is(llama, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists: name a new folder"):
        bake(llama, some_units(llama), deactivate, tmp_path / "out")
    assert nothing_is_left(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="exists: name a new folder"):
        bake(llama, some_units(llama), deactivate, tmp_path / "link")


def refusals(model: NeuronModel) -> Iterator[tuple[Any, Edit, str]]:
    units, none = some_units(model), torch.zeros(N_LAYERS, model.d_mlp, dtype=torch.bool)
    yield none, deactivate, "no unit is chosen"
    yield units[:, :-1], deactivate, "use the model it was made with"
    residual = torch.ones(N_LAYERS, model.d_model, dtype=torch.bool)
    yield {"resid_post": residual}, scale(0.5), "no single weight writes"
    yield {"q": some_units(model, "q")}, scale(0.5), 'Load it with attention="hooked"'
    pushed = Edit("push", 1.0, {"act": some_values(model)}, "act")
    yield units, pushed, "edit at post, replace the gates by constants; in Python, use intervene"


def test_what_cannot_be_written_is_refused_with_a_reason(llama, tmp_path):
    for units, edit, reason in refusals(llama):
        with pytest.raises(ValueError, match=reason):
            bake(llama, units, edit, tmp_path / "out")
    with pytest.raises(ValueError, match="The prompt '' has 0 tokens"):
        bake(llama, some_units(llama), deactivate, tmp_path / "out", prompt="")
    assert nothing_is_left(tmp_path)


def test_what_no_weight_writes_is_refused(checkpoint, tmp_path):
    model = load(checkpoint("llama"), attention="hooked")
    with pytest.raises(ValueError, match="z is a mixture of values"):
        bake(model, {"z": some_units(model, "z")}, scale(0.5), tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_quantized_offloaded_and_processed_weights_are_refused(checkpoint, tmp_path, monkeypatch):
    model = load(checkpoint("llama"), device="cpu")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        config = model.bridge.original_model.config
        patch.setattr(config, "quantization_config", {"bits": 4}, raising=False)
        with pytest.raises(ValueError, match=r"is quantized, .* quantize the result"):
            bake(model, some_units(model), deactivate, out)
    with monkeypatch.context() as patch:
        patch.setattr(NeuronModel, "offloaded", True)
        with pytest.raises(ValueError, match="load it without offloading"):
            bake(model, some_units(model), deactivate, out)
    with monkeypatch.context() as patch:
        patch.setattr(model.bridge, "_weights_processed", True)
        with pytest.raises(ValueError, match="no longer the checkpoint's"):
            bake(model, some_units(model), deactivate, out)
    with monkeypatch.context() as patch:
        first = next(iter(model._parameters))
        patch.setattr(
            model, "_parameters", {k: v for k, v in model._parameters.items() if k != first}
        )
        with pytest.raises(ValueError, match=f"holds no weights for {first}"):
            bake(model, some_units(model), deactivate, out)
    with monkeypatch.context() as patch:
        patch.setattr(model, "bridge", object())
        with pytest.raises(ValueError, match="is a HookedTransformer"):
            bake(model, some_units(model), deactivate, out)
    assert nothing_is_left(tmp_path)


def test_weights_in_an_unknown_order_are_refused(checkpoint, tmp_path):
    model = load(checkpoint("bloom"), attention="hooked", device="cpu")
    units = some_units(model, "q")
    with torch.no_grad():
        for block in model.bridge.blocks:
            weight = block.attn.q.original_component.weight
            weight.copy_(weight.flip(0))
    with pytest.raises(ValueError, match="in an unknown order"):
        bake(model, {"q": units}, scale(0.5), tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_a_checkpoint_that_does_something_else_is_removed(llama, tmp_path):
    with (
        intervene(llama, some_units(llama, seed=8), deactivate),  # which is not written
        pytest.raises(ValueError, match="does not do what the hooks do"),
    ):
        bake(llama, some_units(llama), deactivate, tmp_path / "out")
    assert nothing_is_left(tmp_path)


def test_an_interruption_leaves_nothing(llama, tmp_path, monkeypatch):
    written = []

    def interrupted(folder: Path) -> None:
        written.extend(path.name for path in folder.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(llama.tokenizer, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bake(llama, some_units(llama), deactivate, tmp_path / "out")
    assert "model.safetensors" in written, "there was something to leave"
    assert nothing_is_left(tmp_path)


def test_a_full_disk_leaves_nothing_and_says_so(llama, tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=r"was not written .* nothing is left of it: make room"):
            bake(llama, some_units(llama), deactivate, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert nothing_is_left(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="bytes and 1,000 are free there"):
        bake(llama, some_units(llama), deactivate, tmp_path / "out")
    assert nothing_is_left(tmp_path)


# The shipped model


@pytest.mark.slow
def test_babel_is_baked(tmp_path):
    model = load("babel", dtype=torch.float32, device="cpu")
    units = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    units[:, ::10] = True
    values = torch.full(units.shape, 0.1)
    held = Edit("hold gates", 0.0, {"act": values}, "act")
    out = bake(model, units, held, tmp_path / "held", prompt="Le chat dort dans la maison.")
    baked = load(out, device="cpu")
    ids = torch.tensor([model.encode("The cat sleeps in the house, and the dog does not.")])
    with torch.no_grad():
        before = model.logits(ids)
        with intervene(model, units, held):
            hooked = model.logits(ids)
        assert (hooked - before).abs().max() > 0.01 * before.abs().max()
        assert_close(baked.logits(ids), hooked, 1e-5)
