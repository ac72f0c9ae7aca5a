"""Attribution against captum, against the definition in plain code, and against interventions."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import interp
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.prompts import attribution
from interp.prompts.attribution import (
    attribute_prompts,
    gradient_times_activation,
    integrated_gradients,
    integrated_gradients_by_position,
    sums_by_category,
)
from interp.prompts.attribution_results import Attribution
from interp.prompts.contributions import (
    ablation_effect,
    contribution_score,
    effective_score,
    top_neurons,
)
from interp.prompts.ending import Ending
from interp.prompts.targets import target_ids
from interp.text.tokens import prompt_ids
from tests import tiny_models
from tests.tiny_models import BOS, D_MLP, N_LAYERS, N_VOCAB

PROMPT = "the other day in the city"
TARGETS = (300 % N_VOCAB, 77)
DOWN = {
    "opt": ("model.decoder.layers", "fc2"),
    "gpt2": ("transformer.h", "mlp.c_proj"),
    "bloom": ("transformer.h", "mlp.dense_4h_to_h"),
}
"""Where plain Hugging Face keeps its layers and their output projections."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    @functools.cache
    def build(name: str) -> Any:
        return tiny_models.build(name, tmp_path_factory.mktemp("checkpoint"))

    return build


@pytest.fixture(scope="session")
def open_model(checkpoint: Callable[[str], Any]) -> Callable[[str], NeuronModel]:
    @functools.cache
    def open_once(name: str) -> NeuronModel:
        if name == "babel":
            return load("babel", dtype=torch.float64)  # in 32 bits rounding alone is 1e-5
        return load(checkpoint(name))

    return open_once


@pytest.fixture
def linear(checkpoint: Callable[[str], Any]) -> NeuronModel:
    """A llama without its last norm: the logits are linear in the last layer's neurons."""
    model = load(checkpoint("llama"))
    model.bridge.original_model.model.norm = nn.Identity()
    return model


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal, relative to the largest value of each layer."""
    assert found.shape == expected.shape
    scale = expected.abs().flatten(1).amax(dim=1)
    assert (scale > 0).all()
    assert ((found - expected).abs().flatten(1).amax(dim=1) <= tolerance * scale).all()


def ids_of(model: NeuronModel, prompt: str = PROMPT) -> Tensor:
    return torch.tensor([prompt_ids(model, prompt)])


def quantity_of(logits: Tensor, target: int, quantity: str) -> Tensor:
    if quantity == "logit":
        return logits[..., target]
    return (
        logits.softmax(-1)[..., target].log()
        if quantity == "log_probability"
        else (logits.softmax(-1)[..., target])
    )


@contextmanager
def with_last(model: NeuronModel, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, a layer's neurons at the last token are what `change` makes of them."""

    def run(values: Tensor, hook: Any) -> Tensor:
        return torch.cat([values[:, :-1], change(values[:, -1:])], dim=1)

    with model.hooks([(model.site(layer, "post"), run)]):
        yield


def last_activations(model: NeuronModel, ids: Tensor) -> Tensor:
    rows: list[Tensor] = []
    hooks = [
        (model.site(layer, "post"), lambda values, hook: rows.append(values[0, -1].clone()))
        for layer in range(model.n_layers)
    ]
    with torch.no_grad(), model.hooks(hooks):
        model.logits(ids)
    return torch.stack(rows)


# ---------------------------------------------------------------- the definition


def by_captum(
    hf: Any, name: str, ids: Tensor, score_of: Callable[[Tensor], Tensor], steps: int
) -> Tensor:
    """LayerIntegratedGradients on the input of every down-projection, at the last position.

    captum takes the layer's baseline from a baseline of the input. The input here is a factor at
    the last position: one is the prompt, zero turns the layer's neurons off there.
    """
    from captum.attr import LayerIntegratedGradients

    blocks, part = DOWN.get(name, ("model.layers", "mlp.down_proj"))
    rows = []
    for block in hf.get_submodule(blocks):
        module, factor = block.get_submodule(part), {}

        def scale(module: Any, args: Any, factor: Any = factor) -> Any:
            values = args[0].reshape(len(factor["is"]), ids.shape[1], -1).clone()
            values[:, -1] = values[:, -1] * factor["is"]
            return (values.reshape(args[0].shape),)

        def score(factors: Tensor, factor: Any = factor) -> Tensor:
            factor["is"] = factors
            return score_of(hf(ids.expand(len(factors), -1), use_cache=False).logits)

        handle = module.register_forward_pre_hook(scale)
        values = LayerIntegratedGradients(score, module).attribute(
            torch.ones(1, 1, dtype=hf.dtype),
            torch.zeros(1, 1, dtype=hf.dtype),
            n_steps=steps,
            method="riemann_middle",
            attribute_to_layer_input=True,
        )
        handle.remove()
        rows.append(values.reshape(ids.shape[1], -1)[-1].detach())
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "opt", "gpt2", "bloom", "babel"])
def test_it_equals_captum(name, open_model, checkpoint):
    pytest.importorskip("captum")
    model = open_model(name)
    source = interp.models.load._find("babel") if name == "babel" else checkpoint(name)
    hf = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=model.dtype)
    hf.requires_grad_(False)
    target = int(model.logits(ids_of(model))[0, -1].argmax())
    found = integrated_gradients(model, PROMPT, target, steps=20)
    assert_close(
        found.values,
        by_captum(hf, name, ids_of(model), lambda x: x[:, -1].softmax(-1)[:, target], 20),
    )


def ioi(logits: Tensor) -> Tensor:
    """As in the work on indirect objects: how far one logit is ahead of two others."""
    return logits[:, -1, 77] - logits[:, -1, [44, 91]].mean(dim=-1)


@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_metric_equals_captum(name, open_model, checkpoint):
    pytest.importorskip("captum")
    model = open_model(name)
    hf = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=model.dtype)
    hf.requires_grad_(False)
    found = integrated_gradients(model, ids_of(model), ioi, steps=20)
    assert_close(found.values, by_captum(hf, name, ids_of(model), ioi, 20))
    assert found.targets == ()
    assert found.score == pytest.approx(ioi(model.logits(ids_of(model))).item(), rel=1e-4)


@pytest.mark.parametrize("quantity", ["probability", "log_probability", "logit"])
def test_it_equals_the_definition_layer_by_layer(quantity, open_model, generator):
    model, steps = open_model("qwen3"), 7
    baseline = torch.randn(N_LAYERS, D_MLP, generator=generator)
    ids, neurons = ids_of(model), last_activations(model, ids_of(model))
    found = integrated_gradients(model, PROMPT, TARGETS[0], steps, quantity, baseline)
    expected = torch.zeros(N_LAYERS, D_MLP)
    for layer in range(N_LAYERS):
        for step in range(steps):
            alpha = (step + 0.5) / steps
            point = baseline[layer] + alpha * (neurons[layer] - baseline[layer])
            point.requires_grad_()
            with with_last(model, layer, lambda values, point=point: point.expand_as(values)):
                score = quantity_of(model.logits(ids)[0, -1], TARGETS[0], quantity)
            expected[layer] += torch.autograd.grad(score, point)[0] / steps
        expected[layer] *= neurons[layer] - baseline[layer]
    assert_close(found.values, expected)
    assert torch.allclose(found.activations, neurons, atol=1e-5)
    with torch.no_grad():
        clean = quantity_of(model.logits(ids)[0, -1], TARGETS[0], quantity)
        assert found.score == pytest.approx(clean.item(), rel=1e-4)
        for layer in range(N_LAYERS):
            start = baseline[layer]
            with with_last(model, layer, lambda values, start=start: start.expand_as(values)):
                off = quantity_of(model.logits(ids)[0, -1], TARGETS[0], quantity)
            change, total = (clean - off).item(), found.values[layer].sum().item()
            assert found.change[layer].item() == pytest.approx(change, rel=1e-3)
            error = abs(total - change) / abs(change)
            assert found.completeness_error[layer].item() == pytest.approx(error, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, 50) for name in ("llama", "qwen2", "qwen3", "gpt2", "bloom", "pythia")]
    + [("opt", 200)],
)
def test_values_add_up_to_what_the_layer_changes(name, steps, open_model):
    found = integrated_gradients(open_model(name), PROMPT, TARGETS[0], steps)
    assert (found.change.abs() > 1e-5).all()
    assert (found.completeness_error < 0.01).all()
    assert torch.allclose(found.values.sum(1), found.change, rtol=0.01)


@pytest.mark.filterwarnings("ignore:Attributions of")  # of the first layer
def test_most_layers_of_babel_add_up():
    model = load("babel", dtype=torch.float32)
    prompt, target = "Die Hauptstadt von Frankreich ist", " Paris"
    found = integrated_gradients(model, prompt, target, 50, "log_probability")
    assert found.completeness_error.median() < 0.01


def test_packing_does_not_matter(open_model):
    model = open_model("gemma")
    expected = integrated_gradients(model, PROMPT, TARGETS[0], 5)
    for max_positions in (1, 7, 1000):
        found = integrated_gradients(model, PROMPT, TARGETS[0], 5, max_positions=max_positions)
        assert_close(found.values, expected.values)
        assert torch.allclose(found.change, expected.change, rtol=1e-3)


def test_other_prompts_in_between_do_not_matter(open_model):
    model = open_model("llama")
    questions: Any = [(PROMPT, 9), ("la casa", " de"), (PROMPT, 9)]
    first, second, third = attribute_prompts(model, questions, steps=3, progress=False)
    assert torch.equal(first.values, third.values)
    assert torch.equal(second.values, integrated_gradients(model, "la casa", " de", 3).values)
    assert first.targets == (9,)
    assert second.prompt == tuple(prompt_ids(model, "la casa"))


# ---------------------------------------------------------------- known by hand


@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
def test_on_a_linear_read_out_it_is_known_by_hand(linear, generator):
    target, last = TARGETS[0], N_LAYERS - 1
    direction = linear.w_out(last) @ linear.bridge.W_U[:, target]
    baseline = torch.randn(N_LAYERS, D_MLP, generator=generator)
    neurons = last_activations(linear, ids_of(linear))
    by_hand = neurons[last] * direction
    for steps in (1, 8):
        found = integrated_gradients(linear, PROMPT, target, steps, "logit")
        assert_close(found.values[[last]], by_hand[None])
        assert found.completeness_error[last] < 1e-4
    moved = integrated_gradients(linear, PROMPT, target, 2, "logit", baseline)
    assert_close(moved.values[[last]], ((neurons - baseline)[last] * direction)[None])
    first_order = gradient_times_activation(linear, PROMPT, target, "logit")
    assert_close(first_order[[last]], by_hand[None])
    chosen = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
    chosen[last] = True
    effect = ablation_effect(linear, PROMPT, target, chosen, "logit")
    assert_close(effect[[last]], by_hand[None], 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
def test_a_metric_is_the_quantity_that_it_computes(open_model):
    model, (a, b) = open_model("llama"), TARGETS
    pairs: list[tuple[Any, Any, Any]] = [
        (lambda x: x[:, -1].softmax(-1)[:, a], a, "probability"),
        (lambda x: x[0, -1].log_softmax(-1)[a], a, "log_probability"),  # one number, not a row
        (lambda x: x[:, -1, a] - x[:, -1, b], (a, b), "logit"),
        (lambda x: (x[:, -1, a] - x[:, -1, b]).mean(), (a, b), "logit"),  # of each row by itself
    ]
    some = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
    some[:, ::40] = True
    for metric, target, quantity in pairs:
        found = integrated_gradients(model, PROMPT, metric, 4)
        expected = integrated_gradients(model, PROMPT, target, 4, quantity)
        assert_close(found.values, expected.values)
        assert torch.allclose(found.change, expected.change, rtol=1e-3, atol=1e-6)
        assert found.score == pytest.approx(expected.score, rel=1e-5)
        slope = gradient_times_activation(model, PROMPT, metric)
        assert_close(slope, gradient_times_activation(model, PROMPT, target, quantity))
        effect = ablation_effect(model, PROMPT, metric, some)
        same = ablation_effect(model, PROMPT, target, some, quantity)
        assert torch.allclose(effect, same, rtol=1e-3, atol=1e-6, equal_nan=True)
    everywhere = integrated_gradients_by_position(model, [BOS, 9], pairs[0][0], 3)
    same = integrated_gradients_by_position(model, [BOS, 9], a, 3)
    assert_close(everywhere.values, same.values)


@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
def test_a_planted_difference_is_found_and_what_moves_both_is_not(linear):
    (a, b), last = TARGETS, N_LAYERS - 1
    neurons = last_activations(linear, ids_of(linear))[last]
    planted, decoy = (int(place) for place in neurons.abs().argsort(descending=True)[:2])
    both = linear.bridge.W_U[:, [a, b]].T
    with torch.no_grad():  # outputs that move the two logits by (3, 0) and by (50, 50)
        solve = torch.linalg.pinv(both)
        weights = linear.w_out(last)
        weights[planted] = solve @ torch.tensor([3.0, 0.0]) / neurons[planted]
        weights[decoy] = solve @ torch.tensor([50.0, 50.0]) / neurons[decoy]

    def difference(logits: Tensor) -> Tensor:
        return logits[:, -1, a] - logits[:, -1, b]

    found = integrated_gradients(linear, PROMPT, difference, 6)
    assert top_neurons(found.values, 1).nonzero().tolist() == [[last, planted]]
    assert found.values[last, planted].item() == pytest.approx(3.0, rel=1e-3)
    assert found.values[last, decoy].abs() < 1e-2
    alone = integrated_gradients(linear, PROMPT, lambda logits: logits[:, -1, a], 6)
    assert top_neurons(alone.values, 1).nonzero().tolist() == [[last, decoy]]


@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
def test_the_planted_neuron_is_found_and_no_other(linear):
    target, last = TARGETS[0], N_LAYERS - 1
    neurons = last_activations(linear, ids_of(linear))[last]
    planted, decoy = (int(place) for place in neurons.abs().argsort(descending=True)[:2])
    along = linear.bridge.W_U[:, target] / linear.bridge.W_U[:, target].norm()
    with torch.no_grad():
        weights = linear.w_out(last)
        across = weights[decoy] - (weights[decoy] @ along) * along
        weights[planted] = 20.0 * along / neurons[planted]  # moves the target, whatever its sign
        weights[decoy] = 100.0 * across / across.norm() / neurons[decoy]  # far, but nowhere
    found = integrated_gradients(linear, PROMPT, target, 10, "logit")
    assert top_neurons(found.values, 1).nonzero().tolist() == [[last, planted]]
    far = contribution_score(linear, found.activations)
    assert top_neurons(far, 1).nonzero().tolist() == [[last, decoy]]
    effect = ablation_effect(linear, PROMPT, target, top_neurons(far, 2), "logit")
    expected = 20.0 * linear.bridge.W_U[:, target].norm().item()
    assert effect[last, planted] == pytest.approx(expected, 1e-3)
    assert effect[last, decoy].abs() < 1e-3


@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
@pytest.mark.parametrize("quantity", ["probability", "log_probability", "logit"])
def test_a_difference_is_explained_by_the_difference(quantity, open_model):
    model, (a, b) = open_model("llama"), TARGETS
    pair = integrated_gradients(model, PROMPT, (a, b), 4, quantity)
    one = integrated_gradients(model, PROMPT, a, 4, quantity)
    other = integrated_gradients(model, PROMPT, b, 4, quantity)
    assert_close(pair.values, one.values - other.values, 1e-4)
    assert pair.targets == (a, b)
    assert pair.score == pytest.approx(one.score - other.score, rel=1e-4)


def test_a_path_of_no_length_gives_nothing(open_model):
    model = open_model("llama")
    clean = integrated_gradients(model, PROMPT, 9, 2)
    found = integrated_gradients(model, PROMPT, 9, 2, baseline=clean.activations)
    assert (found.values == 0).all()
    assert (found.change.abs() < 1e-6 * abs(clean.score) + 1e-7).all()


@pytest.mark.parametrize(("name", "tied"), [("opt", True), ("qwen2", False)])
def test_contribution_and_effective_score_by_hand(name, tied, open_model, generator):
    model = open_model(name)
    neurons = torch.randn(2, N_LAYERS, D_MLP, generator=generator)
    hf = model.bridge.original_model
    embedding = hf.get_input_embeddings().weight
    assert torch.equal(embedding, hf.get_output_embeddings().weight) == tied
    contribution = contribution_score(model, neurons)
    effective = effective_score(model, neurons[1], 77)
    for layer, neuron in ((0, 0), (1, 5), (2, 159)):
        output = neurons[1, layer, neuron] * model.w_out(layer)[neuron]
        assert contribution[1, layer, neuron] == pytest.approx(output.norm().item(), rel=1e-5)
        expected = (embedding[77] @ output).item()
        assert effective[layer, neuron] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert_close(contribution[1], contribution_score(model, neurons[1]))


# ---------------------------------------------------------------- what it predicts


@pytest.mark.parametrize("quantity", ["probability", "log_probability", "logit"])
def test_ablation_switches_off_one_neuron_at_the_last_token(quantity, open_model):
    model, target = open_model("qwen2"), TARGETS[0]
    chosen = top_neurons(contribution_score(model, last_activations(model, ids_of(model))), 30)
    found = ablation_effect(model, PROMPT, target, chosen, quantity, max_positions=7)
    assert torch.equal(found.isnan(), ~chosen)
    assert chosen.any(dim=1).all()
    with torch.no_grad():
        clean = quantity_of(model.logits(ids_of(model))[0, -1], target, quantity)
        for layer, neuron in chosen.nonzero().tolist():
            with with_last(model, layer, lambda v, neuron=neuron: off(v, neuron)):
                without = quantity_of(model.logits(ids_of(model))[0, -1], target, quantity)
            effect = (clean - without).item()
            assert found[layer, neuron].item() == pytest.approx(effect, rel=1e-3, abs=4e-6)
    assert found.nan_to_num().abs().max() > 100e-6


def off(values: Tensor, neuron: int) -> Tensor:
    return values.index_fill(-1, torch.tensor([neuron]), 0.0)


def test_values_rank_neurons_as_switching_them_off_does(open_model):
    model = open_model("llama")
    prompt = model.encode(PROMPT)
    found = integrated_gradients(model, prompt, TARGETS[0], 20)
    chosen = torch.ones(N_LAYERS, D_MLP, dtype=torch.bool)
    effect = ablation_effect(model, prompt, TARGETS[0], chosen)

    def correlation(values: Tensor) -> float:
        return torch.corrcoef(torch.stack([values.flatten(), effect.flatten()]))[0, 1].item()

    assert correlation(found.values) > 0.8
    assert correlation(found.values) > correlation(contribution_score(model, found.activations))


def test_gradient_times_activation_is_the_slope_at_the_prompt(open_model):
    model, target = open_model("gpt2"), TARGETS[0]
    found = gradient_times_activation(model, PROMPT, target, "logit").double()
    hf = model.bridge.original_model
    hf.double()
    try:
        for layer, neuron in top_neurons(found.abs(), 8).nonzero().tolist():
            factor = torch.ones(model.d_mlp, dtype=torch.float64)
            slope = 0.0
            for step in (1e-3, -1e-3):
                factor[neuron] = 1 + step
                with torch.no_grad(), with_last(model, layer, lambda v, f=factor: v * f):
                    slope += model.logits(ids_of(model))[0, -1, target].item() / (2 * step)
            assert found[layer, neuron].item() == pytest.approx(slope, rel=1e-3)
    finally:
        hf.float()


# ---------------------------------------------------------------- every position


def test_all_positions_equal_the_definition(open_model):
    model, steps = open_model("gpt2"), 4
    ids = ids_of(model)
    found = integrated_gradients_by_position(model, PROMPT, TARGETS[0], steps, max_positions=30)
    for layer in range(N_LAYERS):
        expected = 0.0
        for step in range(steps):
            seen: list[Tensor] = []

            def scale(values: Tensor, hook: Any, step: int = step, seen: Any = seen) -> Tensor:
                point = values.detach() * (step + 0.5) / steps
                point[:, 0] = values[:, 0]  # what is put before the text stays as it is
                point.requires_grad_()
                seen.extend([values.detach(), point])
                return point

            with model.hooks([(model.site(layer, "post"), scale)]):
                score = model.logits(ids)[0, -1].softmax(-1)[TARGETS[0]]
            expected += (seen[0] * torch.autograd.grad(score, seen[1])[0] / steps)[0]
        assert_close(found.values[layer][None], expected[None, 1:])
    assert found.values.shape == (N_LAYERS, ids.shape[1] - 1, D_MLP)
    assert found.activations.shape == found.values.shape


def test_all_positions_of_one_token_are_the_last(open_model):
    model = open_model("llama")
    everywhere = integrated_gradients_by_position(model, [BOS], 9, 5)
    last = integrated_gradients(model, [BOS], 9, 5)
    assert_close(everywhere.values[:, 0], last.values)
    assert torch.allclose(everywhere.completeness_error, last.completeness_error, atol=1e-3)


def test_all_positions_add_up(open_model):
    found = integrated_gradients_by_position(open_model("llama"), PROMPT, TARGETS[0], 50)
    assert (found.completeness_error < 0.01).all()


# ---------------------------------------------------------------- categories


def test_sums_by_category_are_sums(open_model, generator):
    model = open_model("llama")
    found = integrated_gradients(model, PROMPT, 9, 2)
    categories = torch.randint(0, 3, (N_LAYERS, D_MLP), generator=generator).to(torch.uint8)
    sums = sums_by_category(found, categories)
    assert sums.shape == (4, N_LAYERS)
    for category in range(4):
        for layer in range(N_LAYERS):
            slow = sum(found.values[layer][categories[layer] == category].tolist())
            assert sums[category, layer].item() == pytest.approx(slow, abs=1e-9)
    assert (sums[3] == 0).all()
    assert torch.allclose(sums.sum(0), found.values.double().sum(1))
    with pytest.raises(ValueError, match="give each neuron a number below 2"):
        sums_by_category(found, categories, 2)


def test_top_neurons_takes_the_highest_and_never_nan():
    nan = float("nan")
    score = torch.tensor([[1.0, nan, -3.0], [2.0, 2.0, 0.0]])
    assert top_neurons(score, 2).nonzero().tolist() == [[1, 0], [1, 1]]
    assert top_neurons(score.abs(), 1).nonzero().tolist() == [[0, 2]]
    assert not top_neurons(score, 5)[0, 1]
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"k is {k}: give 1 to 5"):
            top_neurons(score, k)


# ---------------------------------------------------------------- at the door


def test_a_target_is_the_first_token_behind_the_prompt(open_model):
    model = open_model("llama")
    whole = model.encode(PROMPT + " the end")
    (expected,) = whole[len(model.encode(PROMPT)) :][:1]
    assert target_ids(model, PROMPT, " the end") == (expected,)
    assert target_ids(model, [BOS, *model.encode(PROMPT)], " the end") == (expected,)
    assert target_ids(model, ids_of(model)[0], (" the end", 9)) == (expected, 9)
    assert model.decode([expected]) == " "


def test_a_target_that_cannot_be_read_is_refused(open_model):
    model = open_model("llama")
    with pytest.raises(ValueError, match="The target '' adds no token to the prompt"):
        integrated_gradients(model, PROMPT, "")
    with pytest.raises(ValueError, match="reads the end of the prompt and the beginning of 'he'"):
        integrated_gradients(model, "in t", "he")
    for wrong in (-1, N_VOCAB):
        with pytest.raises(ValueError, match=f"{wrong} is not a token of"):
            integrated_gradients(model, PROMPT, wrong)
        with pytest.raises(ValueError, match=f"{wrong} is not a token of"):
            integrated_gradients(model, [5, wrong], 9)
    with pytest.raises(ValueError, match="The prompt '' has 0 tokens"):
        integrated_gradients(model, "", 9)


def test_a_metric_that_cannot_be_explained_is_refused(open_model, tmp_path):
    model = open_model("llama")
    wrong: dict[str, Any] = {
        "'metric' has no gradient: compute it": lambda x: x[0, -1, 9].item(),
        "'metric' depends on the logits of tokens before the last": lambda x: x[:, 0, 9],
        r"gives numbers of shape \[1, 1\]": lambda x: x[..., 9],
        "'metric' is NaN": lambda x: x[:, -1, 9] * float("nan"),
    }
    for said, metric in wrong.items():
        with pytest.raises(ValueError, match=said):
            integrated_gradients(model, PROMPT, metric)
    with pytest.raises(ValueError, match="quantity is 'logit', but a metric is itself"):
        integrated_gradients(model, PROMPT, ioi, quantity="logit")
    with pytest.raises(ValueError, match="files and actors need targets that are tokens"):
        next(attribute_prompts(model, [(PROMPT, ioi)], 2, out=tmp_path))


@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
def test_tokens_may_come_as_to_tokens_gives_them(open_model):
    model = open_model("llama")
    row = torch.tensor([[BOS, *model.encode(PROMPT)]])
    expected = integrated_gradients(model, row[0].tolist(), 9, 2)
    assert torch.equal(integrated_gradients(model, row, 9, 2).values, expected.values)
    unchecked = getattr(prompt_ids, "__wrapped__", prompt_ids)
    with pytest.raises(ValueError, match=r"shape \[2, \d+\] are not one prompt: give a row"):
        unchecked(model, row.repeat(2, 1))


def test_what_makes_no_path_is_refused(open_model):
    model = open_model("llama")
    with pytest.raises(ValueError, match="steps is 0: give 1 or more"):
        integrated_gradients(model, PROMPT, 9, steps=0)
    with pytest.raises(ValueError, match=r"The baseline must be \[layer neuron\], here \[3, 160\]"):
        integrated_gradients(model, PROMPT, 9, baseline=torch.zeros(1, D_MLP))
    with pytest.raises(ValueError, match="NaN or infinite"):
        integrated_gradients(model, PROMPT, 9, baseline=torch.full((N_LAYERS, D_MLP), torch.nan))
    with pytest.raises(ValueError, match=r"The mask of neurons must be \[layer neuron\]"):
        ablation_effect(model, PROMPT, 9, torch.ones(1, D_MLP, dtype=torch.bool))


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_an_ill_conditioned_path_is_said_to_be_one(name, open_model):
    model = open_model(name)
    with pytest.warns(UserWarning, match="Attributions of .* do not add up") as said:
        found = integrated_gradients(model, PROMPT, TARGETS[0])
    assert found.completeness_error.max() > attribution.LARGEST_ERROR
    off = (found.values.double().sum(1) - found.change).abs()
    assert f"the values of layer {off.argmax()} are off" in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half = integrated_gradients(model, PROMPT, TARGETS[0], baseline=0.5 * found.activations)
    assert isinstance(half, Attribution)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_is_pointed_out(dtype, checkpoint, open_model):
    model = load(checkpoint("llama"), dtype=dtype)
    with pytest.warns(UserWarning, match="gradients keep two or three digits"):
        found = integrated_gradients(model, PROMPT, TARGETS[0], quantity="logit")
    exact = integrated_gradients(open_model("llama"), PROMPT, TARGETS[0], quantity="logit")
    assert found.values.dtype == torch.float32
    assert_close(found.values, exact.values, 0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Attributions of")  # few steps
@pytest.mark.parametrize("fits", [1, 7, 40])
def test_a_full_memory_halves_what_goes_at_once_and_nothing_else(fits, open_model, monkeypatch):
    model = open_model("llama")
    neurons = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    neurons[:, ::3] = True

    def both() -> tuple[Tensor, Tensor]:
        found = integrated_gradients(model, PROMPT, TARGETS[0], steps=6, max_positions=64)
        return found.values, ablation_effect(model, PROMPT, TARGETS[0], neurons, max_positions=64)

    expected, asked = both(), Ending.run
    seen: list[int] = []

    def narrow(self, n_variants, edits, max_positions=96):
        for variants, logits in asked(self, n_variants, edits, max_positions):
            if len(variants) > fits:
                raise torch.OutOfMemoryError("out of memory")
            seen.append(len(variants))
            yield variants, logits

    monkeypatch.setattr(Ending, "run", narrow)
    for found, before in zip(both(), expected, strict=True):
        torch.testing.assert_close(found, before, rtol=1e-4, atol=1e-7, equal_nan=True)
    assert 1 <= max(seen) <= fits


def test_a_memory_that_holds_nothing_is_said_to_be_too_small(open_model, monkeypatch):
    def nothing(*given, **settings):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Ending, "run", nothing)
    with pytest.raises(ValueError, match=r"memory of cpu is too small for one variant .* kept"):
        integrated_gradients(open_model("llama"), PROMPT, TARGETS[0])


def test_it_works_where_gradients_are_switched_off(open_model):
    model = open_model("llama")
    expected = integrated_gradients(model, PROMPT, 9, 2).values
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(integrated_gradients(model, PROMPT, 9, 2).values, expected)
            assert gradient_times_activation(model, PROMPT, 9).abs().max() > 0
