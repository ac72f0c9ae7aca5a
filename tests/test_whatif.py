"""What-ifs in one pass against each of them as a whole prompt of its own."""

import functools
import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from interp.models.load import load, wrap
from interp.models.neuron_model import NeuronModel
from interp.models.running import running_instead
from interp.prompts import ending as whatif
from interp.prompts.ending import Ending
from tests import tiny_models
from tests.tiny_models import CONFIGS, D_MLP, D_MODEL, MAX_LENGTH, N_LAYERS, N_VOCAB

LENGTH, N_VARIANTS = 20, 5  # longer than the sliding windows of 8
HAS_CLASSIC = importlib.metadata.version("transformer-lens").startswith("3.")
every_architecture = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="session")
def open_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NeuronModel]:
    @functools.cache
    def open_once(name: str, attention: str = "native") -> NeuronModel:
        folder = tiny_models.build(name, tmp_path_factory.mktemp("checkpoint"))
        return load(folder, attention=attention)

    return open_once


@pytest.fixture
def ids(generator: torch.Generator) -> Tensor:
    return torch.randint(len(tiny_models.SPECIAL), N_VOCAB, (LENGTH,), generator=generator)


def make_edits(model: NeuronModel, generator: torch.Generator, last: int) -> dict[Any, Any]:
    """Every variant differs from the prompt at three sites, and from the other variants."""
    added = torch.randn(N_VARIANTS, last, model.d_mlp, generator=generator)
    residual = torch.randn(N_VARIANTS, last, D_MODEL, generator=generator)
    return {
        ("resid_pre", 0): lambda values, variants: values + residual[variants.cpu()],
        ("post", 1): lambda values, variants: values + added[variants.cpu()],
        ("pre", 2): lambda values, variants: values * (1.0 + variants[:, None, None]),
    }


def one_by_one(model: NeuronModel, ids: Tensor, last: int, edits: Any) -> Tensor:
    """The definition: each variant is a whole prompt, edited at its last tokens by a hook."""

    def hook_for(edit: Any, variant: int) -> Any:
        def run(values: Tensor, hook: Any) -> Tensor:
            end = values[:, -last:].flatten(2)
            changed = edit(end, torch.tensor([variant])).reshape(values[:, -last:].shape)
            return torch.cat([values[:, :-last], changed], dim=1)

        return run

    rows = []
    for variant in range(N_VARIANTS):
        hooks = [
            (model.site(layer, kind), hook_for(e, variant)) for (kind, layer), e in edits.items()
        ]
        with model.hooks(hooks), torch.no_grad():
            rows.append(model.logits(ids[None])[0, -1])
    return torch.stack(rows)


def answers(ending: Ending, edits: Any, **settings: Any) -> Tensor:
    return torch.cat([logits for _, logits in ending.run(N_VARIANTS, edits, **settings)])


def assert_equal(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_differ(rows: Tensor) -> None:
    for place, row in enumerate(rows):
        for other in rows[:place]:
            assert (row - other).abs().max() > 0.01 * rows.abs().max()


# ---------------------------------------------------------------- the same numbers


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["native", "hooked"])
@every_architecture
def test_variants_equal_whole_prompts(name, attention, open_model, ids, generator):
    model = open_model(name, attention)
    for last in (1, 3):
        edits = make_edits(model, generator, last)
        ending = Ending(model, ids, last)
        found = answers(ending, edits)
        expected = one_by_one(model, ids, last, edits)
        assert_differ(torch.cat([ending.logits[None], expected]))
        assert_equal(found, expected)
        assert ending.strategy == ("copied" if name == "bloom" else "packed")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["copied", "whole"])
@every_architecture
def test_the_slower_strategies_give_the_same_numbers(name, strategy, open_model, ids, generator):
    model = open_model(name)
    edits = make_edits(model, generator, 2)
    ending = Ending(model, ids, 2, strategy=strategy)
    assert_equal(answers(ending, edits, max_positions=50), one_by_one(model, ids, 2, edits))
    assert ending.strategy == strategy


@pytest.mark.parametrize("strategy", ["packed", "copied", "whole"])
@pytest.mark.parametrize("last", [1, 2])
def test_a_model_that_keeps_all_logits_gives_the_same_numbers(
    strategy, last, tmp_path, monkeypatch, ids, generator
):
    """As MiniCPM-V, whose forward pass does not know `logits_to_keep`."""
    model = load(tiny_models.build("llama", tmp_path))
    edits = make_edits(model, generator, last)
    expected = one_by_one(model, ids, last, edits)
    forward = model.bridge.original_model.forward

    @functools.wraps(forward)
    def keeps_all(*args: Any, logits_to_keep: Any = 0, **settings: Any) -> Any:
        return forward(*args, **settings)

    monkeypatch.setattr(model.bridge.original_model, "forward", keeps_all)
    assert model.logits(ids[None], keep=2).shape[1] == 2
    ending = Ending(model, ids, last, strategy=strategy)
    assert_equal(answers(ending, edits), expected)
    assert ending.strategy == strategy


def test_layers_with_and_without_a_window_each_get_their_mask(
    monkeypatch, tmp_path, ids, generator
):
    kind, settings = CONFIGS["gemma3"]
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    monkeypatch.setitem(CONFIGS, "mixed", (kind, {**settings, "layer_types": types}))
    model = load(tiny_models.build("mixed", tmp_path))
    edits = make_edits(model, generator, 3)
    ending = Ending(model, ids, 3)
    assert_equal(answers(ending, edits), one_by_one(model, ids, 3, edits))
    assert ending.strategy == "packed"


def test_sites_inside_attention_are_sites_too(open_model, ids, generator):
    model = open_model("llama", "hooked")
    edits = {
        (kind, layer): make_noise(generator, model.width(layer, kind))
        for layer, kind in ((0, "v"), (1, "q"), (1, "k"), (2, "attn_out"))
    }
    expected = one_by_one(model, ids, 2, edits)
    assert_differ(expected)
    for strategy in ("packed", "copied", "whole"):
        assert_equal(answers(Ending(model, ids, 2, strategy=strategy), edits), expected)


def make_noise(generator: torch.Generator, width: int) -> Any:
    noise = torch.randn(N_VARIANTS, 2, width, generator=generator)
    return lambda values, variants: values + noise[variants]


@pytest.mark.parametrize("last", [1, 6])
def test_an_end_may_be_the_whole_prompt(last, open_model, ids, generator):
    model = open_model("llama")
    edits = make_edits(model, generator, last)
    ending = Ending(model, ids[:last], last)
    assert_equal(answers(ending, edits), one_by_one(model, ids[:last], last, edits))


@pytest.mark.parametrize("strategy", ["packed", "copied", "whole"])
def test_how_many_go_in_one_pass_does_not_matter(strategy, open_model, ids, generator):
    model = open_model("mistral")
    edits = make_edits(model, generator, 2)
    ending = Ending(model, ids, 2, strategy=strategy)
    together = answers(ending, edits, max_positions=1000)
    for max_positions in (1, 4, 45):
        assert_equal(answers(ending, edits, max_positions=max_positions), together)
    sizes = [len(variants) for variants, _ in Ending(model, ids, 2).run(5, edits, max_positions=4)]
    assert sizes == [2, 2, 1]


def test_long_ends_are_copied_rather_than_packed(monkeypatch, open_model, ids, generator):
    monkeypatch.setattr(whatif, "_SHORT", 4)
    model = open_model("llama")
    assert Ending(model, ids, 4).strategy == "packed"
    edits = make_edits(model, generator, 5)
    ending = Ending(model, ids, 5)
    assert ending.strategy == "copied"
    assert_equal(answers(ending, edits), one_by_one(model, ids, 5, edits))


def test_variants_do_not_see_each_other(open_model, ids, generator):
    model = open_model("llama")
    ending = Ending(model, ids, 2)
    alone, loud = make_edits(model, generator, 2), make_edits(model, generator, 2)

    def others_louder(site: Any) -> Any:
        def edit(values: Tensor, variants: Tensor) -> Tensor:
            chosen = (variants == 2)[:, None, None]
            return torch.where(
                chosen, alone[site](values, variants), 50 * loud[site](values, variants)
            )

        return edit

    found = answers(ending, {site: others_louder(site) for site in alone})
    assert_equal(found[2], answers(ending, alone)[2])


def test_asking_leaves_nothing_behind(open_model, ids, generator):
    model = open_model("qwen3")
    edits = make_edits(model, generator, 1)
    before = model.logits(ids[None])
    ending = Ending(model, ids)
    first = answers(ending, edits)
    assert torch.equal(answers(ending, edits), first)
    assert torch.equal(model.logits(ids[None]), before)


def test_layers_below_the_first_edit_are_not_run_again(open_model, ids):
    model, seen = open_model("llama"), []
    last = N_LAYERS - 1
    hooks = [
        (model.site(layer, "post"), lambda values, hook, layer=layer: seen.append(layer))
        for layer in range(N_LAYERS)
    ]
    ending = Ending(model, ids)
    with model.hooks(hooks):
        answers(ending, {("post", last): lambda values, variants: 2 * values})
    assert seen == [last]
    seen.clear()
    with model.hooks(hooks):
        model.logits(ids[None])
    assert seen == list(range(N_LAYERS))


def test_gradients_reach_what_is_put_in(open_model, ids, generator):
    model = open_model("qwen2")
    readout = torch.randn(N_VOCAB, generator=generator)
    start = torch.randn(N_VARIANTS, 2, D_MLP, generator=generator)

    def gradient(strategy: Any, max_positions: int) -> Tensor:
        put = start.clone().requires_grad_()
        edits: Any = {("post", 1): lambda values, variants: put[variants]}
        ending = Ending(model, ids, 2, strategy=strategy)
        for _, logits in ending.run(N_VARIANTS, edits, max_positions):
            (logits @ readout).sum().backward()
        assert put.grad is not None
        return put.grad

    expected = gradient("whole", 1000)
    assert expected.abs().amin(dim=(1, 2)).max() > 0
    assert_equal(gradient("packed", 1000), expected)
    assert_equal(gradient("packed", 4), expected)
    assert_equal(gradient("copied", 1000), expected)


def test_an_ending_made_in_inference_mode_can_be_differentiated(open_model, ids):
    with torch.inference_mode():
        ending = Ending(open_model("llama"), ids)
    put = torch.zeros(D_MLP, requires_grad=True)
    edits: Any = {("post", 0): lambda values, variants: values + put}
    for _, logits in ending.run(2, edits):
        logits.sum().backward()
    assert put.grad is not None


@every_architecture
def test_it_knows_the_prompt_itself(name, open_model, ids):
    model, seen = open_model(name), {}
    hooks = [
        (model.site(layer, "post"), lambda values, hook, layer=layer: seen.update({layer: values}))
        for layer in range(N_LAYERS)
    ]
    with torch.no_grad(), model.hooks(hooks):
        logits = model.logits(ids[None])
    ending = Ending(model, ids, 3, ("post", "resid_post"))
    assert_equal(ending.logits, logits[0, -1])
    assert ending.values["resid_post"].shape == (N_LAYERS, 3, D_MODEL)
    assert_equal(ending.values["post"], torch.stack([seen[layer][0, -3:] for layer in seen]))


def test_a_module_gets_its_own_forward_back():
    plain, wrapped = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    own = wrapped.forward = lambda values: -values
    with running_instead(lambda values: values + 1, [plain, wrapped]):
        assert [module(torch.zeros(2)).tolist() for module in (plain, wrapped)] == [[1, 1], [1, 1]]
    with pytest.raises(RuntimeError), running_instead(lambda values: values, [plain, wrapped]):
        raise RuntimeError
    assert "forward" not in vars(plain)
    assert vars(wrapped)["forward"] is own


# ---------------------------------------------------------------- the control row


@pytest.mark.parametrize("fault", ["neighbors", "window", "position"])
def test_where_the_control_row_differs_the_next_strategy_is_used(
    fault, monkeypatch, open_model, ids, generator
):
    model = open_model("mistral")
    edits = make_edits(model, generator, 1)
    hf = model.bridge.original_model
    if fault == "neighbors":
        monkeypatch.setattr(Ending, "_mask", lambda self, position: None)
    elif fault == "window":
        monkeypatch.setattr(whatif, "_window", lambda model: None)
    else:
        forward = hf.forward

        @functools.wraps(forward)
        def unheeding(position_ids: Any = None, **settings: Any) -> Any:
            return forward(**settings)

        monkeypatch.setattr(hf, "forward", unheeding)
    ending = Ending(model, ids)
    assert ending.strategy == "packed"
    found = answers(ending, edits)
    assert ending.strategy == "copied"
    monkeypatch.undo()
    assert_equal(found, one_by_one(model, ids, 1, edits))


def test_a_strategy_that_was_asked_for_is_not_left_in_silence(monkeypatch, open_model, ids):
    monkeypatch.setattr(whatif, "_window", lambda model: None)
    ending = Ending(open_model("mistral"), ids, strategy="packed")
    with pytest.raises(ValueError, match="does not give its own logits when variants are packed"):
        list(ending.run(2, {}))


# ---------------------------------------------------------------- at the door


def test_what_cannot_be_asked_is_refused(open_model, ids):
    model = open_model("llama")
    for last in (0, LENGTH + 1):
        with pytest.raises(ValueError, match=f"the last {last} of {LENGTH} tokens"):
            Ending(model, ids, last)
    with pytest.raises(ValueError, match=f"of at most {MAX_LENGTH} tokens"):
        Ending(model, ids.repeat(4))
    with pytest.raises(ValueError, match=r"'packed' is not possible with .* give copied or whole"):
        Ending(open_model("bloom"), ids, strategy="packed")
    with pytest.raises(ValueError, match="max_positions is 0"):
        list(Ending(model, ids).run(1, {}, max_positions=0))
    with pytest.raises(ValueError, match="'q' is not a site"):
        list(Ending(model, ids).run(1, {("q", 0): lambda values, variants: values}))


@pytest.mark.skipif(not HAS_CLASSIC, reason="HookedTransformer left with 4.0")
def test_a_hooked_transformer_reads_whole_prompts(tmp_path, ids, generator):
    from transformer_lens import HookedTransformer, loading

    folder = str(tiny_models.build("llama", tmp_path / "checkpoint"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its own removal
        config = loading.get_pretrained_model_config(folder, fold_ln=False, device="cpu")
        weights = loading.get_pretrained_state_dict(folder, config, None, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        classic = HookedTransformer(config, tokenizer, move_to_device=False)
        classic.load_and_process_state_dict(weights, fold_ln=False)
    model = wrap(classic)
    edits = make_edits(model, generator, 2)
    ending = Ending(model, ids, 2)
    assert ending.strategy == "whole"
    assert_equal(answers(ending, edits), one_by_one(model, ids, 2, edits))
