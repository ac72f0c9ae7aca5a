"""Only the rows and columns of chosen units move, as under a mask, and a run can be resumed."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from interp.cli import main
from interp.interventions.bake_card import read_edit
from interp.interventions.baked_weights import Weights
from interp.interventions.edits import Change, deactivate
from interp.interventions.movable import movables_of
from interp.interventions.recipe import RECIPES, Recipe
from interp.interventions.train import train_units
from interp.interventions.trained_units import TrainedUnits
from interp.interventions.training_loop import TrainingLoop
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.selections.neuron_selection import NeuronSelection
from interp.text.corpora import Corpora
from tests import test_bake
from tests.campaigns.kills import LANGUAGES, blocks, made_up
from tests.test_bake import assert_close, plain, some_ids, some_units
from tests.tiny_models import D_MLP, N_LAYERS

checkpoint, open_model, llama = test_bake.checkpoint, test_bake.open_model, test_bake.llama
SHORT = Recipe(steps=6, rows=4, rows_at_once=2, learning_rate=1e-2, warmup=0.2)


def some_text(model: NeuronModel) -> Corpora:
    return blocks(model, n_lines=20).languages_only(["de"])


def expected_parts(name: str, units: Tensor) -> dict[str, tuple[int, Tensor]]:
    """By tensor of the checkpoint, the axis and indices of what may move, written out by hand."""
    parts = {}
    for layer in range(N_LAYERS):
        ids = units[layer].nonzero().flatten()
        if not len(ids):
            continue
        if name == "llama":
            parts[f"model.layers.{layer}.mlp.gate_proj.weight"] = (0, ids)
            parts[f"model.layers.{layer}.mlp.up_proj.weight"] = (0, ids)
            parts[f"model.layers.{layer}.mlp.down_proj.weight"] = (1, ids)
        if name == "phi3":
            parts[f"model.layers.{layer}.mlp.gate_up_proj.weight"] = (
                0,
                torch.cat([ids, D_MLP + ids]),
            )
            parts[f"model.layers.{layer}.mlp.down_proj.weight"] = (1, ids)
        if name == "gpt2":
            parts[f"transformer.h.{layer}.mlp.c_fc.weight"] = (1, ids)
            parts[f"transformer.h.{layer}.mlp.c_fc.bias"] = (0, ids)
            parts[f"transformer.h.{layer}.mlp.c_proj.weight"] = (0, ids)
    return parts


def moved(parameter: Tensor, part: tuple[int, Tensor] | None) -> Tensor:
    """True where the parameter may move."""
    mask = torch.zeros(parameter.shape, dtype=torch.bool)
    return mask if part is None else mask.index_fill(*part, True)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_nothing_but_the_chosen_units_moves(name, open_model, checkpoint, tmp_path):
    model, units = open_model(name), some_units(open_model(name))
    before = plain(checkpoint(name)).state_dict()
    trained = train_units(model, units, some_text(model), SHORT, progress=False)
    after = plain(trained.bake(model, tmp_path / "trained")).state_dict()
    parts = expected_parts(name, units)
    for key, tensor in before.items():
        differs = tensor != after[key]
        assert not differs[~moved(tensor, parts.get(key))].any(), key
        assert key not in parts or differs[moved(tensor, parts[key])].float().mean() > 0.9, key
    assert trained.n_weights == sum(
        int(moved(before[key], part).sum()) for key, part in parts.items()
    )
    for key in parts:
        assert torch.equal(model._parameters[key], before[key]), "the model itself has changed"


@pytest.mark.campaign
def test_a_thousand_steps_move_nothing_else(llama, checkpoint, tmp_path):
    units = some_units(llama)
    recipe = Recipe(steps=1000, rows=1, rows_at_once=1, weight_decay=0.1)
    trained = train_units(llama, units, some_text(llama), recipe, progress=False)
    after = plain(trained.bake(llama, tmp_path / "trained")).state_dict()
    parts = expected_parts("llama", units)
    for key, tensor in plain(checkpoint("llama")).state_dict().items():
        assert torch.equal(tensor == after[key], ~moved(tensor, parts.get(key))), key
    assert trained.losses[-50:].mean() < trained.losses[:50].mean() - 0.5


def masked_training(folder: Path, units: Tensor, text: Corpora, recipe: Recipe) -> Any:
    """The definition: full AdamW of whole matrices, with a mask on their gradients."""
    model = plain(folder)
    parts = expected_parts("llama", units)
    tensors = {key: parameter for key, parameter in model.named_parameters() if key in parts}
    model.requires_grad_(False)
    for parameter in tensors.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(tensors.values(), lr=recipe.learning_rate, weight_decay=0.0)
    ids = text.rows["de"].ids.long()
    keep = text.keep(text.rows["de"].ids, text.rows["de"].length)[:, 1:]
    losses = []
    for step in range(recipe.steps):
        logits = model(input_ids=ids).logits[:, :-1]
        loss = functional.cross_entropy(logits[keep], ids[:, 1:][keep])
        optimizer.zero_grad()
        loss.backward()
        for key, parameter in tensors.items():
            parameter.grad.masked_fill_(~moved(parameter, parts[key]), 0.0)
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), recipe.clip)
        rising = recipe.warmup * recipe.steps
        slope = min((step + 1) / (rising + 1), (recipe.steps - step) / (recipe.steps - rising), 1)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * slope
        optimizer.step()
        losses.append(float(loss.detach()))
    return model.state_dict(), losses


@pytest.mark.slow
def test_it_is_full_training_under_a_mask(llama, checkpoint, tmp_path):
    units, text = some_units(llama), some_text(llama)
    recipe = Recipe(
        steps=20, rows=len(text.rows["de"].ids), rows_at_once=100, learning_rate=1e-3, clip=0.5
    )
    wanted, losses = masked_training(checkpoint("llama"), units, text, recipe)
    trained = train_units(llama, units, text, recipe, progress=False)
    after = plain(trained.bake(llama, tmp_path / "trained")).state_dict()
    for key, tensor in wanted.items():
        assert (after[key] - tensor).abs().max() < 1e-6, key
    assert trained.losses.tolist() == pytest.approx(losses, rel=1e-6)
    assert losses[-1] < losses[0] - 0.05, "nothing was learned"


def test_optimizer_memory_grows_with_the_units(llama):
    units, text = some_units(llama), some_text(llama)

    def numbers(chosen: Tensor) -> int:
        weights = Weights(llama)
        movables = movables_of(weights, {"post": chosen})
        loop = TrainingLoop(weights.runnable(), movables, text, SHORT)
        loop.advance()
        assert all(parameter.grad is None for parameter in loop._plain.parameters())
        return sum(
            state[name].numel()
            for state in loop._optimizer.state.values()
            for name in ("exp_avg", "exp_avg_sq")
        )

    one = torch.zeros_like(units)
    one[1, 3] = True
    width = llama.d_model
    assert numbers(one) == 2 * 3 * width
    assert numbers(units) == 2 * 3 * width * int(units.sum())


def test_what_was_trained_is_freed_and_until_then_is_a_model_like_any_other(llama):
    weights, text = Weights(llama), some_text(llama)
    movables = movables_of(weights, {"post": some_units(llama)})
    trained = weights.runnable()
    loop = TrainingLoop(trained, movables, text, SHORT)
    loop.advance()
    seen = [weakref.ref(each) for each in (loop, trained)]
    del loop
    gc.collect()
    trained(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert trained.get_parameter(movables[0].name).grad is not None
    del trained
    gc.collect()
    assert [each() for each in seen] == [None, None]


def same(a: TrainedUnits, b: TrainedUnits) -> bool:
    return torch.equal(a.losses, b.losses) and all(
        torch.equal(values, b.values[key]) for key, values in a.values.items()
    )


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(llama, tmp_path, monkeypatch):
    units, text = some_units(llama), some_text(llama)
    whole = train_units(llama, units, text, SHORT, progress=False)
    assert same(whole, train_units(llama, units, text, SHORT, progress=False))
    other = Recipe(**SHORT.facts | {"seed": 1})
    assert not same(whole, train_units(llama, units, text, other, progress=False))
    advance = TrainingLoop.advance

    def killed(loop: Any) -> float:
        if loop.step == 5:
            raise KeyboardInterrupt
        return advance(loop)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            train_units(llama, units, text, SHORT, out=tmp_path, save_every=2, progress=False)
    steps = []
    monkeypatch.setattr(
        TrainingLoop, "advance", lambda loop: steps.append(loop.step) or advance(loop)
    )
    resumed = train_units(llama, units, text, SHORT, out=tmp_path, save_every=2, progress=False)
    assert steps == [4, 5]
    assert same(whole, resumed)
    assert same(whole, TrainedUnits.load(tmp_path / "trained.safetensors"))
    with pytest.raises(ValueError, match=r"was started with another training \(.*seed"):
        train_units(llama, units, text, other, out=tmp_path, progress=False)


@pytest.mark.slow
def test_it_is_an_adapter_that_peft_loads(open_model, checkpoint, tmp_path):
    peft = pytest.importorskip("peft")
    for name in ("llama", "gpt2"):
        model = open_model(name)
        trained = train_units(model, some_units(model), some_text(model), SHORT, progress=False)
        folder = trained.to_lora(model, tmp_path / f"{name}-adapter", note="By hand.")
        baked = plain(trained.bake(model, tmp_path / f"{name}-baked"))
        adapted = peft.PeftModel.from_pretrained(plain(checkpoint(name)), folder).eval()
        ids = some_ids()
        with torch.no_grad():
            logits = baked(ids).logits
            assert (model.logits(ids) - logits).abs().max() > 0.01 * logits.abs().max()
            assert_close(adapted(ids).logits, logits, 1e-5)
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "trained on de, 6 steps" in card
        assert "By hand." in card
        facts = json.loads((folder / "interp_bake.json").read_text(encoding="utf-8"))
        assert facts["training"]["recipe"] == SHORT.facts
        with pytest.raises(ValueError, match="trained, which no edit of activations equals"):
            read_edit(folder)


def test_units_of_attention_have_the_rows_that_write_them(open_model, checkpoint, tmp_path):
    model = open_model("llama", "hooked")
    mask = torch.zeros(N_LAYERS, model.width(0, "q"), dtype=torch.bool)
    mask[2, 5] = True
    trained = train_units(model, {"q": mask}, some_text(model), SHORT, progress=False)
    after = plain(trained.bake(model, tmp_path / "trained")).state_dict()
    for key, tensor in plain(checkpoint("llama")).state_dict().items():
        differs = (tensor != after[key]).any(dim=-1).nonzero().flatten().tolist()
        assert differs == ([5] if key == "model.layers.2.self_attn.q_proj.weight" else []), key


def test_small_steps_add_up_in_a_narrow_dtype(checkpoint, tmp_path):
    """A bfloat16 weight cannot take a step of 1e-6; what is kept in float32 can."""
    model = load(checkpoint("llama"), dtype=torch.bfloat16, device="cpu")
    recipe = Recipe(steps=3, rows=2, learning_rate=1e-6, warmup=0.0)
    trained = train_units(model, some_units(model), some_text(model), recipe, progress=False)
    before = plain(checkpoint("llama"), dtype=torch.bfloat16).state_dict()
    for key, values in trained.values.items():
        name, axis = key.split()
        part = expected_parts("llama", some_units(model))[name]
        assert values.dtype == torch.float32
        assert not torch.equal(values, before[name].index_select(*part).float())
        assert int(axis) == part[0]


def test_the_last_layers_alone(llama):
    recipe = Recipe(**SHORT.facts | {"steps": 1, "last_layers": 1})
    trained = train_units(
        llama, Change(some_units(llama), deactivate), some_text(llama), recipe, progress=False
    )
    assert {key.split(".")[2] for key in trained.values} == {str(N_LAYERS - 1)}
    assert RECIPES["code-switching"].last_layers == 4
    early = some_units(llama)
    early[-1] = False
    with pytest.raises(ValueError, match="None of the chosen units is in the last 1 of 3 layers"):
        train_units(llama, early, some_text(llama), recipe)


def test_what_cannot_be_trained_is_refused(llama, checkpoint, tmp_path):
    text, stream = some_text(llama), some_units(llama, "resid_post")
    units = some_units(llama)
    cases: dict[str, tuple[Any, Recipe]] = {
        "Units of resid_post have no rows": ({"resid_post": stream}, SHORT),
        "use the model it was made with": (units[:, :7], SHORT),
        "no unit is chosen": (torch.zeros_like(units), SHORT),
    }
    for match, (chosen, recipe) in cases.items():
        with pytest.raises(ValueError, match=match):
            train_units(llama, chosen, text, recipe, progress=False)
    for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"clip": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Recipe(**wrong)
    wild = Recipe(**SHORT.facts | {"learning_rate": 1e30})
    with pytest.raises(ValueError, match=r"at step \d: lower the learning rate"):
        train_units(llama, units, text, wild, progress=False)
    trained = train_units(llama, units, text, SHORT, progress=False)
    other = test_bake.tiny_models.build("llama", tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="trained in a model other than"):
        trained.to_lora(load(other, device="cpu"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_trains_the_neurons_of_a_selection(llama, checkpoint, tmp_path, capsys):
    units = torch.stack([some_units(llama, seed=seed) for seed in (0, 1)])
    NeuronSelection(units, ("de", "en")).to_json(tmp_path / "neurons.json")
    (tmp_path / "text").mkdir()
    for code in LANGUAGES:
        lines = "\n".join(made_up()[code])
        (tmp_path / "text" / f"{code}.txt").write_text(lines, encoding="utf-8")
    command = ["train", str(tmp_path / "neurons.json"), str(checkpoint("llama"))]
    options = ["--language", "de", "--text", str(tmp_path / "text"), "--block-length", "16"]
    short = ["--steps", "3", "--rows", "4", "--out", str(tmp_path / "trained")]
    main([*command, *options, *short])
    said = capsys.readouterr().out
    assert f"{int(units[0].sum())} units of de were trained for 3 steps" in said
    assert (tmp_path / "trained" / "adapter" / "adapter_config.json").is_file()
    trained = TrainedUnits.load(tmp_path / "trained" / "trained.safetensors")
    assert torch.equal(trained.masks["post"], units[0])
    assert trained.training["languages"] == ["de"]
    card = (tmp_path / "trained" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card
