"""A bare model of TransformerLens at every door, its caches, and its hooks beside our changes."""

import gc
import inspect
import typing
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from interp.counting.caches import gradients_at, units_at
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.signs import FiringSigns
from interp.counting.stats import FiringStats
from interp.evaluations.losses import losses_under
from interp.evaluations.multiple_choice import choose
from interp.evaluations.perplexity import PerplexityMatrix, perplexity_matrix
from interp.evaluations.writing import generate_texts
from interp.interventions.edits import Change, add, deactivate, intervene
from interp.models.any_model import as_model
from interp.models.bare_model import BareModel
from interp.models.load import wrap
from interp.models.neuron_model import NeuronModel
from interp.prompts.attribution import gradient_times_activation, integrated_gradients
from interp.prompts.contributions import contribution_score, effective_score
from interp.prompts.ending import Ending
from interp.results.words import NOTHING
from interp.scores.sharing import categories_from_caches, sharing_categories
from interp.scores.sharing_profile import sharing_profile
from interp.selections.neuron_selection import NeuronSelection
from interp.text.reading import prompt_rows
from interp.text.sources import read_prompts
from interp.text.tasks import Item, Task
from tests import test_interventions, test_model
from tests.campaigns.kills import LANGUAGES, blocks, made_up
from tests.test_examples import doors, functions
from tests.test_model import classic_only, close, every_architecture, some_ids
from tests.tiny_models import D_MLP, N_LAYERS, PAD

checkpoint, open_model, classic = test_model.checkpoint, test_model.open_model, test_model.classic
some_moments, some_units = test_interventions.some_moments, test_interventions.some_units


@pytest.fixture(params=["bridge", pytest.param("classic", marks=classic_only)])
def open_bare(request: pytest.FixtureRequest, checkpoint: Any, classic: Any) -> Callable[[], Any]:
    """Opens the tiny llama as TransformerLens does."""
    return classic if request.param == "classic" else lambda: opened(checkpoint("llama"))


@pytest.fixture
def bare(open_bare: Callable[[], Any]) -> Any:
    return open_bare()


def opened(folder: Path) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder), device="cpu")


# ---------------------------------------------------------------- all doors


def called_with(function: Any, parameter: str, model: Any) -> Any:
    """What a function does with this model, and with nothing that it could use beside it."""
    empty = inspect.Parameter.empty
    settings = {
        name: {} if name == "caches" else object()
        for name, each in inspect.signature(function).parameters.items()
        if each.default is empty and each.kind is not each.VAR_KEYWORD
    }
    function = inspect.unwrap(function)  # without the checks of types, which users do not have
    result = function(**{**settings, parameter: model})
    return next(result) if isinstance(result, Iterator) else result


def test_there_are_as_many_doors_as_functions_that_mention_a_model():
    """By their text, without types: none is left out because its hint is written differently."""
    unlike = {"wrap", "measured", "Cached"}  # any object; a function that opens a model
    unlike |= {"effect_change", "rate_change"}  # what was measured in two models
    named = {
        name
        for name, function in functions().items()
        if {"model", "before", "after"} & inspect.signature(function).parameters.keys()
    }
    assert named - unlike == set(doors()) - unlike
    assert len(doors()) >= 45


@pytest.mark.parametrize("name", doors())
def test_every_function_that_takes_a_model_takes_a_bare_one(name: str):
    function, parameter = doors()[name]
    hint = typing.get_type_hints(inspect.unwrap(function))[parameter]
    assert BareModel in typing.get_args(hint), f"{name}: annotate {parameter} with AnyModel"


@pytest.mark.parametrize("given", [nn.Linear(2, 2), "babel"], ids=["module", "name"])
@pytest.mark.parametrize("name", doors())
def test_anything_else_is_refused_before_all_other_checks(name: str, given: Any):
    function, parameter = doors()[name]
    if name == "plan_run" and isinstance(given, str):
        return  # it takes names too
    with pytest.raises(ValueError, match=r"A model is what interp.load gives, .* interp\.load\("):
        called_with(function, parameter, given)


@pytest.mark.parametrize("name", doors())
def test_every_door_wraps_a_bare_model_first(name: str, monkeypatch: pytest.MonkeyPatch):
    """It looks at the model before it looks at anything else, and goes on with the wrapper."""
    function, parameter = doors()[name]

    class Wrapped(Exception):
        pass

    class Bare:
        hook_dict = tokenizer = None

        def run_with_cache(self) -> None: ...

        def parameters(self) -> list[nn.Parameter]:
            return []

    def wrapped(model: Any) -> None:
        raise Wrapped

    monkeypatch.setattr("interp.models.load.wrap", wrapped)
    with pytest.raises(Wrapped):
        called_with(function, parameter, Bare())


def test_a_function_without_a_door_is_caught():
    def closed(model: NeuronModel, n: int) -> int:
        return model.n_layers * n

    with pytest.raises(AttributeError):
        called_with(closed, "model", nn.Linear(2, 2))
    hints = typing.get_type_hints(closed)
    assert BareModel not in typing.get_args(hints["model"])


# ---------------------------------------------------------------- one wrapper, and no trace


def test_a_bare_model_is_wrapped_once(bare: Any):
    first = as_model(bare)
    assert as_model(bare) is first
    assert as_model(first) is first
    assert first.bridge is bare


@pytest.mark.slow
def test_a_bare_model_is_freed_with_its_wrapper(open_bare: Callable[[], Any]):
    bare = open_bare()
    wrapper, weight = weakref.ref(as_model(bare)), weakref.ref(next(bare.parameters()))
    model = weakref.ref(bare)
    gc.collect()
    assert wrapper() is as_model(bare)
    del bare
    gc.collect()
    assert (model(), wrapper(), weight()) == (None, None, None)


def test_a_changed_model_is_wrapped_anew(bare: Any):
    def is_new() -> bool:
        before = as_model(bare)
        weights = before.fingerprint["weights"]
        change()
        after = as_model(bare)
        return after is not before and after.fingerprint["weights"] != weights

    @torch.no_grad()
    def change() -> None:
        next(bare.parameters()).mul_(1.5)

    assert is_new()
    tokenizer, before = bare.tokenizer, as_model(bare)
    bare.tokenizer = None
    assert as_model(bare).tokenizer is None
    bare.tokenizer = tokenizer
    assert as_model(bare) is not before
    before = as_model(bare)
    for parameter in bare.parameters():  # in place, as `.to` does
        parameter.data = parameter.data.double()
    assert as_model(bare) is not before
    assert as_model(bare).fingerprint["dtype"] == "float64"


@pytest.mark.slow
def test_processed_weights_are_wrapped_anew_and_counted(checkpoint: Any):
    bare = opened(checkpoint("llama"))
    before = as_model(bare)
    corpora = blocks(before)
    assert before.fingerprint["processing"] == "none"
    bare.enable_compatibility_mode()
    after = as_model(bare)
    assert after is not before
    assert after.fingerprint["processing"] == "folded and centred"
    assert after.fingerprint["weights"] != before.fingerprint["weights"]
    stats = collect(bare, corpora, progress=False).firing
    rows = corpora.rows["de"]
    with torch.no_grad():
        _, cache = bare.run_with_cache(rows.ids.long())
    keep = corpora.keep(rows.ids, rows.length)
    alone = FiringStats.from_caches({"de": cache}, keep={"de": keep}, model=bare)
    fired = stats.total[stats.languages.index("de")]
    assert int(fired.sum()) > 10_000
    assert int((alone.total[0] - fired).abs().sum()) <= 5  # gates within rounding of zero


@pytest.mark.slow
def test_a_bare_model_can_still_be_trained(bare: Any):
    wanted = [parameter.requires_grad for parameter in bare.parameters()]
    assert any(wanted)
    ids = some_ids(1, 8)[0]
    result = integrated_gradients(bare, ids, int(ids[0]), quantity="logit")
    stats = collect(bare, blocks(as_model(bare)), progress=False).firing
    values = contribution_score(bare, result.activations)
    for tensor in (result.values, result.change, values, stats.total.float()):
        assert not tensor.requires_grad
    assert not as_model(bare).logits(some_ids()).requires_grad
    assert [parameter.requires_grad for parameter in bare.parameters()] == wanted
    assert all(parameter.grad is None for parameter in bare.parameters())
    as_model(bare).run_with_cache(some_ids(), return_type="loss", incl_bwd=True)
    assert bare.embed.W_E.grad is not None  # a model that is trained is not cut off from its input
    bare(some_ids(), return_type="loss").backward()
    assert any(parameter.grad is not None for parameter in bare.parameters())


def test_what_load_gives_is_frozen(open_model: Any):
    model = open_model("llama")
    assert not any(parameter.requires_grad for parameter in model.bridge.parameters())
    _, cache = model.run_with_cache(some_ids(), return_type="loss", incl_bwd=True)
    assert float(cache["blocks.1.mlp.hook_post_grad"].abs().sum()) > 0
    assert not any(parameter.requires_grad for parameter in model.bridge.parameters())
    seen = []
    at = model.site(1, "post")
    hooks = [(at, lambda gradient, hook: seen.append(gradient.clone()))]
    with model.hooks(bwd_hooks=hooks):
        model(some_ids(), return_type="loss").backward()
    model.run_with_hooks(some_ids(), return_type="loss", bwd_hooks=hooks).backward()
    for gradient in seen:
        assert close(gradient, cache["blocks.1.mlp.hook_post_grad"], 1e-7)
    assert len(seen) == 2


# ---------------------------------------------------------------- from caches


@pytest.mark.slow
@every_architecture
def test_scores_of_a_backward_cache_are_those_of_text(name: str, checkpoint: Any, open_model: Any):
    check_scores(opened(checkpoint(name)), open_model(name))


@classic_only
def test_scores_of_a_backward_cache_of_a_hooked_transformer(classic: Any, open_model: Any):
    check_scores(classic(), open_model("llama"))


def equal_but_for_rounding(found: Tensor, wanted: Tensor) -> bool:
    """TransformerLens sums attention in another order than the fused kernel does."""
    return close(found, wanted, 1e-5 * max(1.0, float(wanted.abs().max())))


def check_scores(bare: Any, model: NeuronModel) -> None:
    """Two prompts of different lengths, each with the token that follows it."""
    ids, target = some_ids(2, 9, seed=3), 40
    lengths = (8, 5)
    for row, n in enumerate(lengths):
        prompt = ids[row, :n].tolist()
        tokens = torch.tensor([[*prompt, target]])
        _, cache = bare.run_with_cache(tokens, return_type="loss", incl_bwd=True)
        outputs, gradients = (at(cache, pos=-2) for at in (units_at, gradients_at))
        found = -n * outputs * gradients
        wanted = gradient_times_activation(model, prompt, target, "log_probability")
        assert float(wanted.abs().max()) > 1e-4  # there is an effect to lose
        assert equal_but_for_rounding(found[0], wanted)
        activations = Ending(model, torch.tensor(prompt), kinds=("post",)).values["post"][:, 0]
        assert equal_but_for_rounding(outputs[0], activations)
        for score in (contribution_score, lambda *pair: effective_score(*pair, target)):
            assert equal_but_for_rounding(score(bare, outputs)[0], score(model, activations))
        # A mask numbers the tokens; the position after the end of the prompt has other gradients.
        keep = torch.ones_like(tokens)
        keep[:, -1] = 0
        assert torch.equal(gradients_at(cache, pos=-1, keep=keep), gradients)
        assert not torch.equal(gradients_at(cache, pos=-3), gradients)


@pytest.mark.slow
@every_architecture
def test_the_profile_of_caches_is_that_of_text(name: str, checkpoint: Any, open_model: Any):
    """From caches with gradients, of parallel prompts of different lengths."""
    bare, model = opened(checkpoint(name)), open_model(name)
    short = {code: [line[:40].strip() for line in lines] for code, lines in made_up(5).items()}
    rows = prompt_rows(read_prompts(short, LANGUAGES), bare)
    signs = collect(model, rows, keep=Keep(signs="gate"), progress=False).signs
    caches, keep = {}, {}
    for code, each in rows.rows.items():
        after = torch.arange(each.ids.shape[1]) >= rearrange(each.length, "row -> row 1")
        ids = each.ids.long().masked_fill(after, PAD)
        caches[code] = bare.run_with_cache(ids, return_type="loss", incl_bwd=True)[1]
        keep[code] = rows.keep(each.ids, each.length)
    found = FiringSigns.from_caches(caches, keep=keep, prompts=rows.rows["de"].source, model=bare)
    assert set(found.prompts) == set(signs.prompts)
    order = [found.prompts.index(prompt) for prompt in signs.prompts]
    ours, theirs = (
        sharing_profile(each, torch.Generator().manual_seed(0), n_draws=0).count
        for each in (found, signs)
    )
    assert int((ours[order] - theirs).abs().sum()) <= 4  # gates within rounding of zero
    categories = categories_from_caches(caches, keep=keep)
    row = found.prompts.index(signs.prompts[0])
    wanted = sharing_categories(torch.stack([found.fires(n)[row] for n in range(N_LAYERS)], dim=1))
    assert torch.equal(categories[:, row], wanted)


def test_a_cache_without_gradients_is_refused(open_model: Any):
    model = open_model("llama")
    _, cache = model.run_with_cache(some_ids())
    with pytest.raises(ValueError, match="holds no gradients: call run_with_cache with incl_bwd=T"):
        gradients_at(cache)
    at = {"names_filter": lambda name: name.endswith("hook_pre")}
    _, cache = model.run_with_cache(some_ids(), return_type="loss", incl_bwd=True, **at)
    with pytest.raises(ValueError, match=r"The backward cache lacks blocks\.0\.mlp\.hook_post"):
        gradients_at(cache)
    assert gradients_at(cache, "pre").shape == (2, N_LAYERS, D_MLP)


# ---------------------------------------------------------------- edits as hooks


def some_changes(model: NeuronModel) -> dict[str, Change]:
    units = some_units(N_LAYERS, D_MLP)
    moments = some_moments(D_MLP)
    return {
        "off": Change(units, deactivate),
        "add": Change(units, add(moments, moments.languages[0], 2.0)),
    }


def written(model: Any, ids: Tensor, hooks: Any) -> Tensor:
    """Eight new tokens by the `generate` of TransformerLens; on 4 there is no `run` with hooks."""
    with model.hooks(fwd_hooks=hooks):
        return model.generate(ids, max_new_tokens=8, do_sample=False, verbose=False)


def test_a_change_is_a_list_of_hooks_for_a_bare_model(bare: Any):
    model, ids = as_model(bare), some_ids()
    for name, change in some_changes(model).items():
        hooks = change.hooks(bare)
        with torch.no_grad(), intervene(bare, change.units, change.edit):
            wanted = bare(ids)
            continued = written(bare, ids, [])
        with torch.no_grad():
            assert not close(wanted, bare(ids), 1e-3), name
            assert torch.equal(bare.run_with_hooks(ids, fwd_hooks=hooks), wanted)
            assert torch.equal(model.run_with_hooks(ids, fwd_hooks=hooks), wanted)
            with model.hooks(hooks):
                assert close(model.logits(ids), wanted)
        assert torch.equal(written(bare, ids, hooks), continued)
        assert not torch.equal(written(bare, ids, []), continued), name


@pytest.mark.slow
def test_changes_of_some_tokens_know_the_prompt(bare: Any):
    """Through the model's own calls, which TransformerLens' users know."""
    model, ids = as_model(bare), some_ids()
    units = some_units(N_LAYERS, D_MLP)
    mask = torch.ones_like(ids)
    for tokens in ("prompt", "generated", "last"):
        change = Change(units, deactivate, tokens)
        hooks = change.hooks(bare)
        with model.hooks(hooks):
            wanted = model.continuations(ids, mask, max_new_tokens=8)
        assert torch.equal(written(model, ids, hooks)[:, : wanted.shape[1]], wanted), tokens
        with torch.no_grad():
            with model.hooks(hooks):
                logits = model.logits(ids)
            assert close(model.run_with_hooks(ids, fwd_hooks=hooks), logits)
            assert close(model.run_with_cache(ids)[0], model(ids))
        with pytest.raises(ValueError, match=r"which a bare model of TransformerLens does not say"):
            bare.run_with_hooks(ids, fwd_hooks=hooks)
    off = Change(units, deactivate).hooks(bare)
    assert not torch.equal(written(model, ids, off), written(model, ids, []))


def test_the_last_token_is_before_the_padding(bare: Any):
    model = as_model(bare)
    texts = ["The dog sees", "a red moon and keeps silent"]
    hooks = Change(some_units(N_LAYERS, D_MLP), deactivate, "last").hooks(model)
    with torch.no_grad():
        together = model.run_with_hooks(texts, fwd_hooks=hooks)
        for row, text in enumerate(texts):
            alone = model.run_with_hooks(text, fwd_hooks=hooks)[0]
            assert close(together[row, : len(alone)], alone)
            assert not close(alone, model(text)[0], 1e-3)
        left = model.run_with_hooks(texts, fwd_hooks=hooks, padding_side="left")
        assert close(left[0, -1], model.run_with_hooks(texts[0], fwd_hooks=hooks)[0, -1])


def test_the_last_token_is_that_of_the_attention_mask(bare: Any):
    model, ids = as_model(bare), some_ids(2, 8)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    hooks = Change(some_units(N_LAYERS, D_MLP), deactivate, "last").hooks(model)
    with torch.no_grad():
        together = model.run_with_hooks(ids, fwd_hooks=hooks, attention_mask=mask)
        alone = model.run_with_hooks(ids[:1, :5], fwd_hooks=hooks)
    assert close(together[0, 4], alone[0, -1])
    assert not close(alone, model(ids[:1, :5]), 1e-3)


def test_a_hook_may_run_the_model_itself(bare: Any):
    """The pass in which it runs still knows its prompt afterwards."""
    model, ids = as_model(bare), some_ids(1, 8)
    hooks = Change(some_units(N_LAYERS, D_MLP), deactivate, "last").hooks(model)
    runs = []

    def run_another(values: Tensor, hook: Any) -> None:
        if not runs:
            runs.append(hook.name)
            model(some_ids(1, 3, seed=5))

    first = (model.site(0, "resid_pre"), run_another)
    with torch.no_grad():
        wanted = model.run_with_hooks(ids, fwd_hooks=hooks)
        assert close(model.run_with_hooks(ids, fwd_hooks=[first, *hooks]), wanted)
    assert runs


# ---------------------------------------------------------------- their hooks as conditions


def zeroed(model: NeuronModel, neurons: Tensor) -> list[tuple[str, Callable[..., Tensor]]]:
    """What a user of TransformerLens writes: these neurons of layer 1 give zero, in place."""

    def off(values: Tensor, hook: Any) -> Tensor:
        values[..., neurons] = 0.0
        return values

    return [(model.site(1, "post"), off)]


def same_as_hooks() -> tuple[Tensor, Change]:
    neurons = torch.arange(0, D_MLP, 2)
    units = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
    units[1, neurons] = True
    return neurons, Change(units, deactivate)


@pytest.mark.slow
def test_hook_functions_are_conditions_beside_changes(bare: Any):
    model = as_model(bare)
    neurons, change = same_as_hooks()
    hooks = zeroed(model, neurons)
    corpora = blocks(model)
    points: Any = (lambda name: name == model.site(1, "post"), hooks[0][1])
    under = {NOTHING: None, "ours": change, "theirs": hooks, "one": hooks[0], "chosen": [points]}
    losses = losses_under(bare, corpora, under, progress=False)
    nothing, ours, *theirs = losses.nats.unbind(dim=1)
    assert not torch.equal(nothing, ours)
    assert all(torch.equal(ours, each) for each in theirs)
    settings = {"n": 2, "max_new_tokens": 6, "progress": False}
    texts = generate_texts(bare, ["a dog", "the"], under=under, **settings)
    assert texts["ours"].texts != texts[NOTHING].texts
    assert all(texts[name].texts == texts["ours"].texts for name in ("theirs", "one", "chosen"))
    item = Item("1", "the", (" dog", " cat"), 0)
    chosen = choose(bare, [Task("pets", "en", (item,))], under=under, progress=False)
    assert len(chosen) == len(under)


def test_hooks_and_changes_apply_together_in_order(open_model: Any):
    """The first is outermost: it sees what the model gives, the second what the first left."""
    model = open_model("llama")
    neurons, change = same_as_hooks()
    seen = []

    def look(values: Tensor, hook: Any) -> None:
        seen.append(bool((values[..., neurons] == 0).all()))

    hook = (model.site(1, "post"), look)
    text = blocks(model).languages_only(["de"])
    for applied, is_off in (([hook, change], False), ([change, hook], True)):
        losses_under(model, text, {"both": applied}, progress=False)
        assert set(seen) == {is_off}
        seen.clear()


@pytest.mark.slow
def test_a_matrix_has_conditions_beside_its_rows(open_model: Any, tmp_path: Path):
    model = open_model("llama")
    neurons, change = same_as_hooks()
    corpora = blocks(model)
    mask = torch.zeros(2, N_LAYERS, D_MLP, dtype=torch.bool)
    mask[0, 0, :9] = mask[1, 2, 5:30] = True
    selection = NeuronSelection(mask, ("de", "en"))
    plain = perplexity_matrix(model, selection, corpora, n_draws=1, progress=False)
    beside = {"ours": change, "theirs": zeroed(model, neurons)}
    matrix = perplexity_matrix(model, selection, corpora, n_draws=1, beside=beside, progress=False)
    assert torch.equal(matrix.losses.nats, plain.losses.nats)
    assert torch.equal(matrix.random, plain.random)
    assert plain.beside is None
    assert matrix.beside is not None
    wanted = losses_under(model, corpora, {NOTHING: None, **beside}, progress=False)
    assert torch.equal(matrix.beside.nats, wanted.nats)
    assert not torch.equal(wanted.nats[:, 0], wanted.nats[:, 1])
    frame = matrix.to_frame()
    rows = frame[frame["off"].isin(beside)]
    assert rows["increase"].tolist() == wanted.increase.value[1:].flatten().tolist()
    assert rows["neurons"].isna().all()
    assert rows["random"].isna().all()
    before = plain.to_frame()
    assert frame[: len(before)]["increase"].tolist() == before["increase"].tolist()
    matrix.save(tmp_path / "matrix.safetensors")
    again = PerplexityMatrix.load(tmp_path / "matrix.safetensors")
    assert again.beside is not None
    assert torch.equal(again.beside.nats, matrix.beside.nats)
    assert again.beside.interventions == matrix.beside.interventions
    with pytest.raises(ValueError, match="de is a name of the matrix itself"):
        perplexity_matrix(model, selection, corpora, beside={"de": change}, progress=False)


def test_hook_functions_cannot_be_resumed_and_say_so(open_model: Any, tmp_path: Path):
    model = open_model("llama")
    under = {NOTHING: None, "mine": zeroed(model, torch.arange(3))}
    calls = (
        lambda: losses_under(model, blocks(model), under, out=tmp_path / "a", progress=False),
        lambda: generate_texts(
            model, ["a"], 1, under, max_new_tokens=4, out=tmp_path / "b", progress=False
        ),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"'mine' holds a hook function.*cannot be resumed"):
            call()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ([("blocks.9.mlp.hook_post", print)], "has no such hook: build names with model.site"),
        ([(lambda name: False, print)], "chooses none of the hooks"),
        ([("blocks.0.mlp.hook_post", 3)], "'mine' is tuple: give an interp.Change"),
        ([lambda values, hook: values], "'mine' is function: give an interp.Change"),
        ([None], "'mine' is NoneType: give an interp.Change"),
    ],
)
def test_hooks_that_never_run_are_refused(condition: Any, said: str, open_model: Any):
    from interp.interventions.under import check_under

    unchecked = inspect.unwrap(check_under)
    with pytest.raises(ValueError, match=said):
        unchecked(open_model("llama"), {"mine": condition})


def test_wrapping_by_hand_takes_another_tokenizer(bare: Any):
    mine = wrap(bare, SimpleNamespace(bos_token_id=None), name="mine")
    assert mine.name == "mine"
    assert as_model(mine) is mine
    assert as_model(bare) is not mine
