"""Every edit against a plain hook of torch on a Hugging Face module, on every architecture."""

import contextlib
import dataclasses
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import transformers
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import test_model
from tests.test_model import GATED, classic_only, close, count_hooks, record, right_padded, some_ids
from tests.tiny_models import D_MLP, D_MODEL, N_HEADS, N_LAYERS

# Fixtures of another file, under their own names.
checkpoint, open_model, classic = (
    test_model.checkpoint,
    test_model.open_model,
    test_model.classic,
)
every_architecture = test_model.every_architecture

BLOCKS = {
    "bloom": "transformer.h",
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "pythia": "gpt_neox.layers",
}
LLAMA = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "pre": "mlp.gate_proj",
    "pre_linear": "mlp.up_proj",
    "act": "mlp.act_fn",
    "post": "mlp.down_proj",
    "mlp_out": "mlp.down_proj",
    "resid_pre": "",
    "resid_post": "",
}
NORMED = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}


def parts(attention: tuple[str, str], mlp: tuple[str, str, str]) -> dict[str, str]:
    """Modules of an ungated block: query, key and value are one, or have their letter for {}."""
    return {
        **{letter: attention[0].format(letter) for letter in "qkv"},
        **dict(zip(("attn_out", "pre", "act", "post"), (attention[1], *mlp), strict=True)),
        "mlp_out": mlp[2],
    }


BART_LIKE = parts(("self_attn.{}_proj", "self_attn.out_proj"), ("fc1", "activation_fn", "fc2"))
MODULES: dict[str, dict[str, str]] = {
    "bloom": parts(
        ("self_attention.query_key_value", "self_attention.dense"),
        ("mlp.dense_h_to_4h", "mlp.gelu_impl", "mlp.dense_4h_to_h"),
    ),
    "pythia": parts(
        ("attention.query_key_value", "attention.dense"),
        ("mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h"),
    ),
    "gpt2": parts(("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.act", "mlp.c_proj")),
    "phi": parts(
        ("self_attn.{}_proj", "self_attn.dense"), ("mlp.fc1", "mlp.activation_fn", "mlp.fc2")
    ),
    "phi3": {
        **dict.fromkeys("qkv", "self_attn.qkv_proj"),
        **dict.fromkeys(("pre", "pre_linear"), "mlp.gate_up_proj"),
        "act": "mlp.activation_fn",
    },
    "xglm": BART_LIKE,
    "opt": BART_LIKE,
    "gemma2": NORMED,
    "gemma3": NORMED,
}
"""Where the modules are called otherwise than in Llama."""


@dataclass(frozen=True)
class Change:
    """What a torch hook does in one layer: factor times what chosen units give, plus shift."""

    site: str
    layer: int
    units: Tensor
    factor: float
    shift: Tensor


@dataclass(frozen=True)
class Plain:
    """A Hugging Face model that knows nothing of bridges."""

    name: str
    hf: Any

    def columns(self, site: str, units: Tensor) -> Tensor:
        """Where a site's units are in the output of a module that computes several sites."""
        heads, width = N_HEADS, D_MODEL // N_HEADS
        if site in ("q", "k", "v") and self.name in ("bloom", "pythia"):
            inside = torch.arange(3 * D_MODEL)
            parts = rearrange(
                inside, "(head part unit) -> part (head unit)", head=heads, unit=width
            )
            return parts["qkv".index(site)][units]
        if site in ("q", "k", "v") and self.name in ("gpt2", "phi3"):
            grouped = heads * width if self.name == "gpt2" else 2 * width
            return units + {"q": 0, "k": D_MODEL, "v": D_MODEL + grouped}[site]
        return units + D_MLP if (self.name, site) == ("phi3", "pre_linear") else units

    @contextmanager
    def changed(self, changes: list[Change], where: str = "all", prompt: int = 0) -> Iterator[None]:
        """Other `where` than "all": in passes that hold the whole text, prompt and generated."""

        def formula(values: Tensor, change: Change) -> Tensor:
            columns, new = self.columns(change.site, change.units), values.clone()
            new[..., columns] = change.factor * values[..., columns] + change.shift.to(values)
            if where == "all":
                return new
            place = torch.arange(values.shape[-2])
            here = {
                "prompt": place < prompt,
                "generated": place >= prompt,
                "last": place >= prompt - 1,
            }[where]
            return torch.where(here[:, None], new, values)

        def after(change: Change) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                if isinstance(output, tuple):
                    return (formula(output[0], change), *output[1:])
                return formula(output, change)

            return hook

        def before(change: Change) -> Callable[..., Any]:
            return lambda module, args: (formula(args[0], change), *args[1:])

        blocks = self.hf.get_submodule(BLOCKS.get(self.name, "model.layers"))
        with ExitStack() as handles:
            for change in changes:
                path = {**LLAMA, **MODULES.get(self.name, {})}[change.site]
                module = blocks[change.layer].get_submodule(path)
                if change.site in ("post", "resid_pre"):
                    handle = module.register_forward_pre_hook(before(change))
                else:
                    handle = module.register_forward_hook(after(change))
                handles.callback(handle.remove)
            yield

    def logits(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.hf(ids, use_cache=False).logits


@pytest.fixture(scope="session")
def plain(checkpoint: Callable[[str], Path]) -> Callable[..., Plain]:
    def open_once(name: str, **options: Any) -> Plain:
        load = transformers.AutoModelForCausalLM.from_pretrained
        return Plain(name, load(checkpoint(name), **options))

    return open_once


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_units(n_layers: int, width: int, part: int = 0, of: int = 3) -> Tensor:
    """One of `of` disjoint sets of units, others in each layer, none in the middle one."""
    units = (torch.arange(width) + torch.arange(n_layers)[:, None]) % of == part
    units[n_layers // 2] = False
    return units


def as_hooks(site: str, mask: Tensor, factor: float, shift: Tensor | None) -> list[Change]:
    shift = torch.zeros(mask.shape) if shift is None else shift
    return [
        Change(site, layer, mask[layer].nonzero().flatten(), factor, shift[layer][mask[layer]])
        for layer in mask.any(dim=1).nonzero().flatten().tolist()
    ]


def some_moments(d_mlp: int) -> Any:
    """As if three languages had been read; a neuron's mean is around zero."""
    from interp.counting.stats import ActivationMoments

    tokens = torch.tensor([50, 80, 20])
    sums = draw(4, 3, N_LAYERS, d_mlp, seed=7).double() * tokens[:, None, None]
    return ActivationMoments(sums=sums, tokens=tokens, languages=("en", "fr", "de"))


def neuron_edits(d_mlp: int) -> dict[str, tuple[Any, str, float, Tensor | None]]:
    """Name → the edit, its site, and by hand: the factor and what is added."""
    from interp.interventions import edits as ours

    moments, values = some_moments(d_mlp), draw(N_LAYERS, d_mlp, seed=3)
    mean = {
        site: (moments.sums[row] / moments.tokens[:, None, None]).float()
        for site, row in (("act", 0), ("post", 2))
    }
    found: dict[str, tuple[Any, str, float, Tensor | None]] = {
        "deactivate": (ours.deactivate, "post", 0.0, None),
        "deactivate at act": (ours.deactivate, "act", 0.0, None),
        "scale": (ours.scale(-1.5), "post", -1.5, None),
        "override": (ours.override(values), "post", 0.0, values),
        "override at act": (ours.override(values, "act"), "act", 0.0, values),
    }
    for site, (en, fr, de) in mean.items():
        found |= {
            f"replace at {site}": (ours.replace(moments, "fr", site), site, 0.0, fr),
            f"add at {site}": (ours.add(moments, "de", -0.5, site), site, 1.0, -0.5 * de),
            f"difference at {site}": (
                ours.difference_of_means(moments, "fr", 0.7, site),
                site,
                1.0,
                0.7 * (fr - (en + de) / 2),
            ),
        }
    return found


def residual_push(layer: int) -> tuple[Any, Tensor, Tensor]:
    """A push of the whole residual stream after one layer: the edit, the mask, and its values."""
    from interp.interventions.edits import push

    values, mask = draw(N_LAYERS, D_MODEL, seed=5), torch.zeros(N_LAYERS, D_MODEL).bool()
    mask[layer] = True
    return push({"resid_post": values}, 0.5), mask, 0.5 * values


def attention_edit(model: Any, sites: tuple[str, ...]) -> tuple[Any, dict[str, Tensor], list[Any]]:
    """Half of what units gave plus a constant, at several sites: edit, masks, and torch hooks."""
    from interp.interventions.edits import Edit

    shift, masks, changes = {}, {}, []
    for number, site in enumerate(sites):
        width = model.width(0, site)
        shift[site] = 0.7 * draw(N_LAYERS, width, seed=number)
        masks[site] = some_units(N_LAYERS, width)
        changes += as_hooks(site, masks[site], 0.5, shift[site])
    return Edit("half and more", 0.5, shift), masks, changes


def write(
    module: nn.Module, generate: Callable[[], Any], n_steps: int = 8
) -> tuple[Tensor, Tensor]:
    """What `generate` gives, and the logits of each step: [batch step vocab]."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(getattr(output, "logits", output)[:, -1])

    handle = module.register_forward_hook(keep)
    with torch.no_grad():
        written = generate()
    handle.remove()
    assert len(seen) == n_steps
    return written, torch.stack(seen, dim=1)


def write_plain(plain: Plain, ids: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    settings = {"max_new_tokens": 8, "pad_token_id": 0, "do_sample": False, **options}
    return write(plain.hf, lambda: plain.hf.generate(ids, attention_mask=mask.long(), **settings))


def write_ours(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    module = getattr(model.bridge, "original_model", None)
    if module is None:  # HookedTransformer generates by its forward, past hooks on itself
        module = model.bridge.unembed
    return write(module, lambda: model.continuations(ids, mask, max_new_tokens=8, **options))


def prompts() -> tuple[Tensor, Tensor]:
    """Three prompts, padded on the left."""
    ids, mask = right_padded(some_ids(3, 12, seed=1), [12, 5, 9])
    return ids.flip(1), mask.flip(1)


def same_writing(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(ours[0], expected[0]) and close(ours[1], expected[1])


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the tests' own type checks, which would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class TestEveryArchitecture:
    @every_architecture
    def test_each_edit_of_neurons_is_that_of_a_torch_hook(
        self, name: str, open_model: Any, plain: Any
    ) -> None:
        from interp.interventions.edits import intervene

        model, reference, ids = open_model(name), plain(name), some_ids(length=14)
        untouched, mask = reference.logits(ids), some_units(N_LAYERS, model.d_mlp)
        for title, (edit, site, factor, shift) in neuron_edits(model.d_mlp).items():
            with reference.changed(as_hooks(site, mask, factor, shift)):
                expected = reference.logits(ids)
            assert not close(expected, untouched, 1e-2), f"{title} has no effect to lose"
            with intervene(model, {site: mask}, edit):
                assert close(model.logits(ids), expected), title
        edit, mask, values = residual_push(1)
        with reference.changed(as_hooks("resid_post", mask, 1.0, values)):
            expected = reference.logits(ids)
        assert not close(expected, untouched, 1e-2)
        with intervene(model, mask, edit):
            assert close(model.logits(ids), expected)
        assert torch.equal(model.logits(ids), open_model(name).logits(ids))

    @every_architecture
    def test_all_edits_at_once_write_what_torch_hooks_write(
        self, name: str, open_model: Any, plain: Any
    ) -> None:
        from interp.interventions.edits import intervene

        model, reference = open_model(name), plain(name)
        ids, attended = prompts()
        edits = neuron_edits(model.d_mlp)
        changes: list[Change] = []
        with ExitStack() as blocks:
            for part, (edit, site, factor, shift) in enumerate(edits.values()):
                mask = some_units(N_LAYERS, model.d_mlp, part, 2 * len(edits))
                changes += as_hooks(site, mask, factor, shift)
                blocks.enter_context(intervene(model, {site: mask}, edit))
            edit, mask, values = residual_push(1)
            changes += as_hooks("resid_post", mask, 1.0, values)
            blocks.enter_context(intervene(model, mask, edit))
            cached = write_ours(model, ids, attended)
            uncached = write_ours(model, ids, attended, use_cache=False)
        untouched = write_plain(reference, ids, attended)
        with reference.changed(changes):
            expected = write_plain(reference, ids, attended)
        assert not torch.equal(expected[0], untouched[0])
        assert same_writing(cached, expected)
        assert same_writing(uncached, expected)

    @pytest.mark.slow
    @every_architecture
    def test_units_of_every_linear_output_are_those_of_hugging_face(
        self, name: str, open_model: Any, plain: Any
    ) -> None:
        from interp.interventions.edits import intervene

        model, reference = open_model(name, attention="hooked"), plain(name)
        ids, (padded, attended) = some_ids(length=14), prompts()
        untouched = reference.logits(ids)
        sites = ("q", "k", "v", "attn_out", "pre", "mlp_out", "resid_pre")
        sites = (*sites, "pre_linear") if name in GATED else sites
        for site in sites:
            edit, masks, changes = attention_edit(model, (site,))
            with reference.changed(changes):
                expected = reference.logits(ids)
            assert not close(expected, untouched, 1e-2), f"{site} has no effect to lose"
            with intervene(model, masks, edit):
                assert close(model.logits(ids), expected), site
        edit, masks, changes = attention_edit(model, sites)
        with reference.changed(changes):
            expected = write_plain(reference, padded, attended)
        assert not torch.equal(expected[0], write_plain(reference, padded, attended)[0])
        with intervene(model, masks, edit):
            assert same_writing(write_ours(model, padded, attended), expected)
            uncached = write_ours(model, padded, attended, use_cache=False)
        assert same_writing(uncached, expected)


@pytest.mark.slow
def test_each_edit_alone_writes_what_a_torch_hook_writes(open_model: Any, plain: Any) -> None:
    from interp.interventions.edits import intervene

    model, reference, (ids, attended) = open_model("llama"), plain("llama"), prompts()
    mask = some_units(N_LAYERS, model.d_mlp, of=2)
    untouched = write_plain(reference, ids, attended)
    for title, (edit, site, factor, shift) in neuron_edits(model.d_mlp).items():
        with reference.changed(as_hooks(site, mask, factor, shift)):
            expected = write_plain(reference, ids, attended)
        assert not close(expected[1], untouched[1], 1e-2), title
        with intervene(model, {site: mask}, edit):
            assert same_writing(write_ours(model, ids, attended), expected), title


class TestWhere:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["llama", "bloom", "gpt2"])
    @pytest.mark.parametrize("where", ["prompt", "generated", "last"])
    def test_generation_is_edited_there_alone(
        self, name: str, where: Any, open_model: Any, plain: Any
    ) -> None:
        from interp.interventions.edits import intervene, push

        model, reference, (ids, attended) = open_model(name), plain(name), prompts()
        mask, values = some_units(N_LAYERS, model.d_mlp), 2 * draw(N_LAYERS, model.d_mlp)
        changes, length = as_hooks("act", mask, 1.0, values), ids.shape[1]
        with reference.changed(changes, where, length):
            expected = write_plain(reference, ids, attended, use_cache=False)
        with reference.changed(changes):
            everywhere = write_plain(reference, ids, attended)
        assert not close(expected[1], everywhere[1], 1e-2)
        assert not close(expected[1], write_plain(reference, ids, attended)[1], 1e-2)
        with intervene(model, mask, push({"act": values}), where):
            assert same_writing(write_ours(model, ids, attended), expected)
            assert same_writing(write_ours(model, ids, attended, use_cache=False), expected)

    def test_the_first_generated_token_shows_what_was_edited(self, open_model: Any) -> None:
        """Its logits come from the last prompt position: edits of what is generated come later."""
        from interp.interventions.edits import deactivate, intervene

        model, (ids, attended) = open_model("llama"), prompts()
        mask, seen = some_units(N_LAYERS, D_MLP), {}
        with torch.no_grad():
            seen["none"] = write_ours(model, ids, attended)[1][:, 0]
            for where in ("all", "prompt", "generated", "last"):
                with intervene(model, mask, deactivate, where):
                    seen[where] = write_ours(model, ids, attended)[1][:, 0]
        assert torch.equal(seen["generated"], seen["none"])
        assert torch.equal(seen["prompt"], seen["all"])
        assert not close(seen["last"], seen["none"], 1e-2)
        assert not close(seen["last"], seen["all"], 1e-2)

    def test_last_is_the_last_real_token_of_a_text_that_is_read(self, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene

        model, mask = open_model("llama"), some_units(N_LAYERS, D_MLP)
        ids, attended = right_padded(some_ids(length=14), [14, 6])
        before = model.logits(ids, attended)
        with intervene(model, mask, deactivate):
            everywhere = model.logits(ids, attended)
        with intervene(model, mask, deactivate, "last"):
            last = model.logits(ids, attended)
        for row, length in enumerate((14, 6)):
            alone = ids[row : row + 1, :length]
            assert torch.equal(last[row, : length - 1], before[row, : length - 1])
            assert not close(last[row, length - 1], before[row, length - 1], 1e-2)
            assert not close(last[row, length - 1], everywhere[row, length - 1], 1e-2)
            with intervene(model, mask, deactivate, "last"):
                assert close(model.logits(alone)[0], last[row, :length])

    def test_a_text_that_is_read_is_all_prompt(self, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene

        model, mask, ids = open_model("llama"), some_units(N_LAYERS, D_MLP), some_ids()
        before = model.logits(ids)
        with intervene(model, mask, deactivate):
            everywhere = model.logits(ids)
        with intervene(model, mask, deactivate, "prompt"):
            assert torch.equal(model.logits(ids), everywhere)
        with intervene(model, mask, deactivate, "generated"):
            assert torch.equal(model.logits(ids), before)
        assert not close(before, everywhere, 1e-2)

    def test_a_pass_beside_the_model_is_refused(self, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene

        model, mask = open_model("llama"), some_units(N_LAYERS, D_MLP)
        with (
            pytest.raises(ValueError, match="does not say: run"),
            intervene(model, mask, deactivate, "last"),
        ):
            model.bridge(some_ids())


class TestBlocks:
    def test_nothing_is_left_behind_whatever_happens_inside(self, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene

        model, ids, mask = open_model("llama"), some_ids(), some_units(N_LAYERS, D_MLP)
        before, count = model.logits(ids), count_hooks(model)
        for error in (None, RuntimeError, KeyboardInterrupt, GeneratorExit):
            with contextlib.suppress(*[error] if error else []):  # noqa: SIM117
                with intervene(model, mask, deactivate):
                    assert not close(model.logits(ids), before, 1e-2)
                    if error is not None:
                        raise error
            assert count_hooks(model) == count
            assert torch.equal(model.logits(ids), before)

    def test_an_interrupt_in_the_middle_of_a_pass_leaves_nothing(self, open_model: Any) -> None:
        from interp.interventions.edits import intervene, override

        model, ids, mask = open_model("llama"), some_ids(), some_units(N_LAYERS, D_MLP)
        before, edit = model.logits(ids), override({"act": draw(N_LAYERS, D_MLP)})
        with intervene(model, mask, edit):
            edited = model.logits(ids)

        def interrupt(values: Tensor, hook: Any) -> None:
            raise KeyboardInterrupt

        for kind in ("pre_linear", "post"):  # the linear branch is kept, and is used
            with intervene(model, mask, edit):
                with (
                    pytest.raises(KeyboardInterrupt),
                    model.hooks([(model.site(0, kind), interrupt)]),
                ):
                    model.logits(some_ids(seed=4))
                assert torch.equal(model.logits(ids), edited)
            assert torch.equal(model.logits(ids), before)

    def test_hooks_of_others_stay(self, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene

        model, calls = open_model("llama"), []
        with model.hooks([(model.site(0, "post"), lambda post, hook: calls.append(1))]):
            with intervene(model, some_units(N_LAYERS, D_MLP), deactivate):
                model.logits(some_ids())
            model.logits(some_ids())
        assert calls == [1, 1]

    def test_the_inner_edit_changes_what_the_outer_one_made(self, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene, push, scale

        model, ids = open_model("llama"), some_ids()
        mask, values = some_units(N_LAYERS, D_MLP), draw(N_LAYERS, D_MLP)
        (before, *_), add = record(model, "post", lambda: model.logits(ids)), push({"post": values})
        cases = (
            (deactivate, add, torch.zeros_like(before) + values[0]),
            (add, deactivate, torch.zeros_like(before)),
            (scale(2.0), add, 2 * before + values[0]),
            (add, scale(2.0), 2 * (before + values[0])),
        )
        for outer, inner, expected in cases:
            with intervene(model, mask, outer), intervene(model, mask, inner):
                first, *_ = record(model, "post", lambda: model.logits(ids))
            assert close(first[..., mask[0]], expected[..., mask[0]])
            assert torch.equal(first[..., ~mask[0]], before[..., ~mask[0]])

    def test_one_language_off_and_another_on(self, open_model: Any) -> None:
        """As in language arithmetics: a neuron of both languages gives the mean of the second."""
        from interp.interventions.edits import add, deactivate, intervene, language_mean
        from interp.selections.neuron_selection import NeuronSelection

        model, ids, moments = open_model("llama"), some_ids(), some_moments(D_MLP)
        sets = torch.stack([some_units(N_LAYERS, D_MLP, 0), some_units(N_LAYERS, D_MLP, 0, 2)])
        sets[:, 1] = sets[:, 0]
        selection = NeuronSelection(sets, ("en", "fr"))
        english, french = selection["en"], selection["fr"]
        assert (english & french).any()
        with (
            intervene(model, {"act": english}, deactivate),
            intervene(model, {"act": french}, add(moments, "fr", 2.0)),
        ):
            seen = {
                kind: record(model, kind, lambda: model.logits(ids))
                for kind in ("pre", "pre_linear", "post")
            }
        mean = language_mean(moments, "fr", "act")
        for layer in range(N_LAYERS):
            gate = nn.functional.silu(seen["pre"][layer])
            gate = gate.masked_fill(english[layer], 0.0) + 2.0 * mean[layer] * french[layer]
            assert close(seen["post"][layer], gate * seen["pre_linear"][layer])

    def test_sites_that_meet_are_edited_in_the_order_of_the_computation(
        self, open_model: Any, plain: Any
    ) -> None:
        from interp.interventions.edits import Edit, intervene

        model, reference, ids = open_model("llama"), plain("llama"), some_ids()
        mask = some_units(N_LAYERS, D_MLP)
        shift = {
            site: draw(N_LAYERS, D_MLP, seed=number)
            for number, site in enumerate(("post", "act", "pre_linear", "pre"))
        }
        changes = [each for site in shift for each in as_hooks(site, mask, 0.3, shift[site])]
        with reference.changed(changes):
            expected = reference.logits(ids)
        for order in (list(shift), list(reversed(shift))):
            edit = Edit("everything", 0.3, {site: shift[site] for site in order})
            with intervene(model, {site: mask for site in order}, edit):
                assert close(model.logits(ids), expected)

    def test_a_mask_may_choose_nothing_at_some_sites(self, open_model: Any) -> None:
        """Not even a site that the model does not have: medians come with every site."""
        from interp.interventions.edits import intervene, override

        model, ids = open_model("llama"), some_ids()
        values, mask = draw(N_LAYERS, D_MLP), some_units(N_LAYERS, D_MLP)
        everything = override({"q": draw(N_LAYERS, D_MODEL), "post": values})
        with intervene(model, mask, override(values)):
            expected = model.logits(ids)
        with intervene(
            model, {"q": torch.zeros(N_LAYERS, D_MODEL).bool(), "post": mask}, everything
        ):
            assert torch.equal(model.logits(ids), expected)


class TestDtypesAndPlaces:
    def test_gradients_flow_through_an_edit(self, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene, override

        model, ids, mask = open_model("llama"), some_ids(1, 8), some_units(N_LAYERS, D_MLP)

        def gradient(edit: Any) -> Tensor:
            gates: list[Tensor] = []

            def watch(values: Tensor, hook: Any) -> Tensor:
                gates.append(values.detach().requires_grad_())
                return gates[0]

            with (
                intervene(model, {edit.site: mask}, edit),
                model.hooks([(model.site(0, "pre"), watch)]),
            ):
                logits = model.logits(ids, keep=1)
            return torch.autograd.grad(logits[0, 0, 5], gates)[0]

        for edit in (deactivate, override({"act": draw(N_LAYERS, D_MLP)})):
            found = gradient(edit)
            assert (found[..., mask[0]] == 0).all()  # what a held neuron reads does not matter
            assert (found[..., ~mask[0]].abs().amax(dim=1) > 1e-6).all()

    def test_gradients_reach_the_values(self, open_model: Any) -> None:
        """Against a finite difference: a steering vector can be learned."""
        from interp.interventions.edits import intervene, push

        model, ids, mask = open_model("llama"), some_ids(1, 8), some_units(N_LAYERS, D_MLP)
        values, direction = draw(N_LAYERS, D_MLP).requires_grad_(), draw(N_LAYERS, D_MLP, seed=1)

        def target(values: Tensor) -> Tensor:
            with intervene(model, {"act": mask}, push({"act": values})):
                return model.logits(ids, keep=1)[0, 0, 5]

        (found,) = torch.autograd.grad(target(values), values)
        with torch.no_grad():
            ahead, back = (target(values + step * direction) for step in (1e-2, -1e-2))
        assert abs((found * direction).sum() - (ahead - back) / 2e-2) < 1e-2 * found.norm()
        assert (found[~mask] == 0).all()
        assert found[mask].abs().max() > 1e-3

    def test_a_pass_without_gradients_does_not_spoil_a_later_one(self, open_model: Any) -> None:
        from interp.interventions.edits import intervene, override

        model, mask, ids = open_model("llama"), some_units(N_LAYERS, D_MLP), some_ids(1, 8)
        start: list[Tensor] = []

        def watch(values: Tensor, hook: Any) -> Tensor:
            start.append(values.detach().clone().requires_grad_())
            return start[0]

        values = draw(N_LAYERS, D_MLP).double()
        with intervene(model, {"act": mask}, override({"act": values.float()})):
            with torch.inference_mode():
                model.logits(ids)
            with model.hooks([(model.site(0, "resid_pre"), watch)]):
                target = model.logits(ids, keep=1)[0, 0, 5]
        assert torch.autograd.grad(target, start)[0].abs().max() > 1e-4

    def test_short_floats_stay_short(self, checkpoint: Any, plain: Any) -> None:
        from interp.interventions.edits import intervene
        from interp.models.load import load

        model = load(checkpoint("llama"), dtype=torch.bfloat16)
        reference, ids = plain("llama", dtype=torch.bfloat16), some_ids()
        mask, edits = some_units(N_LAYERS, D_MLP), neuron_edits(D_MLP)
        for title, (edit, site, factor, shift) in edits.items():
            with reference.changed(as_hooks(site, mask, factor, shift)):
                expected = reference.logits(ids)
            with intervene(model, {site: mask}, edit):
                logits = model.logits(ids)
                post = record(model, "post", lambda: model.logits(ids))
            assert logits.dtype == post[0].dtype == torch.bfloat16
            assert not close(expected, reference.logits(ids), 0.2), title
            assert (logits - expected).abs().max() < 0.03 * expected.abs().max(), title

    def test_layers_may_be_offloaded(self, checkpoint: Any, plain: Any, tmp_path: Path) -> None:
        from interp.interventions.edits import intervene
        from interp.models.load import load

        reference, ids = plain("llama"), some_ids()
        parts = ("embed_tokens", "norm", "rotary_emb", "layers.0", "layers.1")
        places = {f"model.{part}": "cpu" for part in parts}
        places |= {"lm_head": "cpu", "model.layers.2": "disk"}
        model = load(checkpoint("llama"), device_map=places, offload_folder=str(tmp_path))
        assert model.offloaded
        mask, values = some_units(N_LAYERS, D_MLP), draw(N_LAYERS, D_MLP)
        assert mask[2].any()
        with reference.changed(as_hooks("act", mask, 0.0, values)):
            expected = reference.logits(ids)
        from interp.interventions.edits import override

        with intervene(model, mask, override({"act": values})):
            assert close(model.logits(ids), expected)

    def test_a_bridge_in_compatibility_mode_is_edited_once(self, checkpoint: Any) -> None:
        """It calls a hook for each name of a place unless it is careful."""
        from transformer_lens.model_bridge import TransformerBridge

        from interp.interventions.edits import intervene, scale
        from interp.models.load import wrap

        bridge = TransformerBridge.boot_transformers(str(checkpoint("llama")), device="cpu")
        bridge.enable_compatibility_mode(disable_warnings=True)
        model, ids = wrap(bridge), some_ids()
        (before, *_), mask = record(model, "post", lambda: model.logits(ids)), some_units(3, D_MLP)
        with intervene(model, mask, scale(3.0)):
            (after, *_) = record(model, "post", lambda: model.logits(ids))
        assert torch.equal(after[..., mask[0]], 3.0 * before[..., mask[0]])
        assert torch.equal(after[..., ~mask[0]], before[..., ~mask[0]])


class TestCheck:
    """Warnings are errors in these tests, so that silence is checked too."""

    PROMPT = "the quick there"

    def planted(self, checkpoint: Any) -> tuple[Any, Tensor, Tensor]:
        """A neuron that gives zero everywhere, and a decoy that gives something."""
        from interp.models.load import load

        model = load(checkpoint("opt"))
        layer = model.bridge.original_model.model.decoder.layers[1].fc1
        getattr(layer, "original_component", layer).bias[[7, 8]] = torch.tensor([-100.0, 1.0])
        silent, decoy = torch.zeros(2, N_LAYERS, D_MLP, dtype=torch.bool)
        silent[1, 7], decoy[1, 8] = True, True
        return model, silent, decoy

    def test_a_neuron_that_gives_zero_already_is_told(self, checkpoint: Any) -> None:
        from interp.interventions.edits import deactivate, intervene

        model, silent, decoy = self.planted(checkpoint)
        with (
            pytest.warns(UserWarning, match="deactivate on 1 units changes nothing") as caught,
            intervene(model, silent, deactivate, check=self.PROMPT),
        ):
            pass
        assert caught[0].filename == __file__
        for mask in (decoy, decoy | silent):
            with intervene(model, mask, deactivate, check=self.PROMPT):
                pass

    def test_an_edit_that_changes_nothing_is_told(self, open_model: Any) -> None:
        from interp.interventions.edits import intervene, scale

        model, mask = open_model("llama"), some_units(N_LAYERS, D_MLP)
        with (
            pytest.warns(UserWarning, match="changes nothing"),
            intervene(model, mask, scale(1.0), check=self.PROMPT),
        ):
            pass
        with intervene(model, mask, scale(1.1), check=self.PROMPT):
            pass

    def test_a_hook_that_is_not_heard_is_told(self, checkpoint: Any) -> None:
        from interp.interventions.edits import deactivate, intervene
        from interp.models.load import load

        model = load(checkpoint("llama"))
        masks = torch.zeros(2, N_LAYERS, D_MLP, dtype=torch.bool)
        masks[0, 1, :9], masks[1, 2, :9] = True, True
        out = model.bridge.blocks[1].mlp.out
        vars(out)["forward"] = out.original_component.forward
        with (
            pytest.warns(UserWarning, match="their hooks do not fire"),
            intervene(model, masks[0], deactivate, check=self.PROMPT),
        ):
            pass
        with intervene(model, masks[1], deactivate, check=self.PROMPT):
            pass

    @pytest.mark.parametrize("where", ["all", "prompt", "generated", "last"])
    def test_an_edit_that_works_is_not_told(self, where: Any, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene

        model, mask = open_model("llama"), some_units(N_LAYERS, D_MLP)
        before = model.logits(some_ids())
        with intervene(model, mask, deactivate, where, check=self.PROMPT):
            pass
        assert torch.equal(model.logits(some_ids()), before)

    def test_a_change_before_the_last_token_counts(self, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene

        model = open_model("opt")
        ids = torch.tensor([model.encode(self.PROMPT)])
        last_layer = record(model, "post", lambda: model.logits(ids))[-1][0]
        early = (last_layer[-1] == 0) & (last_layer[:-1] > 0).any(dim=0)
        assert early.any()
        mask = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
        mask[-1] = early
        with intervene(model, mask, deactivate, check=self.PROMPT):
            pass

    def test_a_warning_turned_into_an_error_leaves_nothing(self, open_model: Any) -> None:
        from interp.interventions.edits import intervene, scale

        model, mask, ids = open_model("llama"), some_units(N_LAYERS, D_MLP), some_ids()
        before, count = model.logits(ids), count_hooks(model)
        block = intervene(model, mask, scale(1.0), check=self.PROMPT)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning):
                block.__enter__()
        assert count_hooks(model) == count
        assert torch.equal(model.logits(ids), before)


class TestValues:
    def test_a_language_mean_is_the_sum_over_its_tokens_divided_by_them(self) -> None:
        from interp.counting.stats import ActivationMoments
        from interp.interventions.edits import language_mean

        sums = torch.zeros(4, 2, 1, 3).double()
        sums[0, 1, 0], sums[2, 1, 0] = torch.tensor([[2.0, 4.0, 6.0], [1.0, -1.0, 0.0]])
        sums[1], sums[3] = 99.0, 99.0
        moments = ActivationMoments(sums=sums, tokens=torch.tensor([5, 4]), languages=("en", "fr"))
        assert language_mean(moments, "fr").tolist() == [[0.5, 1.0, 1.5]]
        assert language_mean(moments, "fr", "act").dtype == torch.float32
        assert language_mean(moments, "fr", "post").tolist() == [[0.25, -0.25, 0.0]]
        assert language_mean(moments, "en").tolist() == [[0.0, 0.0, 0.0]]

    def test_the_others_weigh_alike_in_a_difference_however_much_was_read(self) -> None:
        from interp.counting.stats import ActivationMoments
        from interp.interventions.edits import difference_of_means

        tokens, means = torch.tensor([10, 1000, 1]), torch.tensor([6.0, 1.0, 3.0])
        sums = torch.zeros(4, 3, 1, 1).double()
        sums[0, :, 0, 0] = means * tokens
        moments = ActivationMoments(sums=sums, tokens=tokens, languages=("en", "fr", "de"))
        edit = difference_of_means(moments, "en", 0.5)
        assert edit.factor == 1.0
        assert edit.shift["act"].tolist() == [[0.5 * (6 - (1 + 3) / 2)]]

    @pytest.mark.parametrize("n_sentences", [5, 6])
    def test_sentence_medians_are_those_of_the_definition(
        self, n_sentences: int, tmp_path: Path
    ) -> None:
        """By the standard library, which knows no tensors; other languages do not count."""
        from interp.counting.sentence_means import SentenceMeans
        from interp.interventions.edits import sentence_medians

        labels = torch.tensor([0] * n_sentences + [1] * 4)
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
        table = {
            f"means.{kind}.{layer}": draw(len(labels), width, seed=layer + width)
            for kind, width in (("post", 7), ("q", 4))
            for layer in range(2)
        }
        pieces = (tmp_path / "1.safetensors", tmp_path / "2.safetensors")
        for path, rows in zip(pieces, (slice(0, 3), slice(3, None)), strict=True):
            save_file({key: each[rows].clone() for key, each in table.items()}, path)
        means = SentenceMeans(
            pieces=pieces, labels=labels, languages=("en", "fr", "de"), kinds=("post", "q")
        )
        found = sentence_medians(means, "en")
        assert {kind: tuple(each.shape) for kind, each in found.items()} == {
            "post": (2, 7),
            "q": (2, 4),
        }
        for kind, values in found.items():
            for layer, row in enumerate(values.tolist()):
                columns = table[f"means.{kind}.{layer}"][labels == 0].T.tolist()
                assert row == pytest.approx([statistics.median(each) for each in columns])
        with pytest.raises(ValueError, match="no sentence in de"):
            sentence_medians(means, "de")
        with pytest.raises(ValueError, match="'it' is not in these means, which cover en, fr, de"):
            sentence_medians(means, "it")

    def test_what_was_measured_is_written_at_every_site(
        self, open_model: Any, tmp_path: Path
    ) -> None:
        """Medians of a run over text, as constants, at the sites they were measured at."""
        from interp.interventions.edits import intervene, override

        model, ids = open_model("llama", attention="hooked"), some_ids()
        sites = ("q", "v", "attn_out", "pre", "post", "mlp_out")
        values = {
            site: draw(N_LAYERS, model.width(0, site), seed=n) for n, site in enumerate(sites)
        }
        masks = {site: some_units(N_LAYERS, each.shape[1]) for site, each in values.items()}
        with intervene(model, masks, override(values)):
            for site, mask in masks.items():
                for layer in (0, 2):
                    seen = record(model, site, lambda: model.logits(ids))[layer]
                    held = seen.reshape(2, 20, -1)[..., mask[layer]]
                    assert torch.equal(held, values[site][layer][mask[layer]].expand_as(held))

    def test_zero_strength_and_factor_one_change_nothing(self, open_model: Any) -> None:
        from interp.interventions.edits import add, difference_of_means, intervene, push, scale

        model, ids, moments = open_model("llama"), some_ids(), some_moments(D_MLP)
        mask, before = some_units(N_LAYERS, D_MLP), model.logits(ids)
        edits = (
            scale(1.0),
            add(moments, "fr", 0.0),
            difference_of_means(moments, "fr", 0.0, "post"),
            push({"post": draw(N_LAYERS, D_MLP)}, 0.0),
        )
        for edit in edits:
            with intervene(model, mask, edit):
                assert torch.equal(model.logits(ids), before), edit.name

    def test_edits_that_mean_the_same_give_the_same(self, open_model: Any) -> None:
        from interp.interventions.edits import deactivate, intervene, override, replace, scale

        model, ids, moments = open_model("llama"), some_ids(), some_moments(D_MLP)
        mask = some_units(N_LAYERS, D_MLP)

        def logits(edit: Any, site: Any = "post") -> Tensor:
            with intervene(model, {site: mask}, edit):
                return model.logits(ids)

        off = logits(deactivate)
        for site in ("act", "post", "pre"):  # the activation of zero is zero
            assert close(logits(scale(0.0), site), off)
            assert close(logits(override(torch.zeros(N_LAYERS, D_MLP), site), site), off)
        mean = (moments.sums[0, 1] / moments.tokens[1]).float()
        assert torch.equal(
            logits(replace(moments, "fr"), "act"), logits(override(mean, "act"), "act")
        )
        assert not close(off, logits(override(mean, "act"), "act"), 1e-2)


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.fixture
    def model(self, open_model: Any) -> Any:
        return open_model("llama")

    def refused(self, model: Any, units: Any, edit: Any, match: str, **settings: Any) -> None:
        from interp.interventions.edits import intervene

        count = count_hooks(model)
        with pytest.raises(ValueError, match=match) as error:
            intervene(model, units, edit, **settings).__enter__()
        assert "\n" not in str(error.value)
        assert count_hooks(model) == count

    def test_an_edit_made_for_another_model(self, model: Any) -> None:
        from interp.interventions.edits import deactivate, override

        mask = some_units(N_LAYERS, D_MLP)
        for wrong in (mask[:2], mask[:, :-1], mask[0], torch.stack([mask, mask])):
            self.refused(
                model, wrong, deactivate, r"has 3 layers of 160 units there: use the model"
            )
        self.refused(
            model,
            mask,
            override(draw(N_LAYERS, D_MLP + 1)),
            r"the values of 'override' at post has shape \(3, 161\)",
        )

    def test_a_mask_of_numbers(self, model: Any) -> None:
        from interp.interventions.edits import deactivate

        for dtype in (torch.long, torch.float32):
            mask = some_units(N_LAYERS, D_MLP).to(dtype)
            self.refused(model, mask, deactivate, "give torch.bool, True for a chosen unit")

    def test_an_empty_set(self, model: Any) -> None:
        from interp.interventions.edits import deactivate

        nothing = torch.zeros(N_LAYERS, D_MLP).bool()
        for units in (nothing, {"act": nothing}, {}):
            self.refused(model, units, deactivate, "no unit is chosen")

    def test_values_of_one_site_at_another(self, model: Any) -> None:
        from interp.interventions.edits import replace

        edit, mask = replace(some_moments(D_MLP), "fr"), some_units(N_LAYERS, D_MLP)
        self.refused(model, {"post": mask}, edit, "has values for act only, and units of post")

    def test_a_site_that_the_model_does_not_have(self, model: Any, open_model: Any) -> None:
        from interp.interventions.edits import deactivate

        mask = some_units(N_LAYERS, D_MODEL)
        self.refused(model, {"q": mask}, deactivate, 'Load it with attention="hooked"')
        self.refused(model, {"gate": mask}, deactivate, "'gate' is not a site of .* has pre")
        wide = some_units(N_LAYERS, 4 * D_MODEL)
        self.refused(open_model("bloom"), {"pre_linear": wide}, deactivate, "is not a site of")

    def test_an_unknown_place_and_an_empty_prompt(self, model: Any) -> None:
        from interp.interventions.edits import deactivate

        mask = some_units(N_LAYERS, D_MLP)
        self.refused(model, mask, deactivate, "tokens is one of all, prompt", tokens="first")
        self.refused(model, mask, deactivate, "The prompt '' has 0 tokens", check="")

    def test_numbers_that_are_none(self, model: Any) -> None:
        from interp.interventions import edits as ours

        nan, values = float("nan"), draw(N_LAYERS, D_MLP)
        for make in (
            lambda: ours.scale(nan),
            lambda: ours.push({"post": values}, float("inf")),
            lambda: ours.add(some_moments(D_MLP), "fr", nan),
        ):
            with pytest.raises(ValueError, match="give a finite number"):
                make()
        values[1, 4] = nan
        empty = dataclasses.replace(some_moments(D_MLP), tokens=torch.tensor([0, 3, 3]))
        mask = torch.zeros(N_LAYERS, D_MLP, dtype=torch.bool)
        mask[1, 4] = True
        self.refused(model, mask, ours.override(values), "at post of unit 4 in layer 1 is nan")
        self.refused(model, mask, ours.replace(empty, "en", "post"), "a mean over no tokens")
        with ours.intervene(model, mask.roll(1), ours.override(values)):
            assert model.logits(torch.tensor([[5, 6]])).isfinite().all()

    def test_a_language_or_a_site_that_was_not_measured(self) -> None:
        from interp.counting.stats import ActivationMoments
        from interp.interventions import edits as ours

        moments = some_moments(D_MLP)
        with pytest.raises(ValueError, match="'it' is not in these moments, which cover en, fr"):
            ours.replace(moments, "it")
        with pytest.raises(ValueError, match="measured at act and post, not at 'q'"):
            ours.language_mean(moments, "fr", "q")
        alone = ActivationMoments(
            sums=torch.ones(4, 1, 1, 2).double(), tokens=torch.tensor([3]), languages=("fr",)
        )
        with pytest.raises(ValueError, match="no language but fr"):
            ours.difference_of_means(alone, "fr")


@classic_only
class TestHookedTransformer:
    def test_edits_are_those_of_torch_hooks(self, classic: Any, plain: Any) -> None:
        from interp.interventions.edits import intervene
        from interp.models.load import wrap

        model, reference, ids = wrap(classic()), plain("llama"), some_ids(length=14)
        mask, untouched = some_units(N_LAYERS, D_MLP), reference.logits(ids)
        for title, (edit, site, factor, shift) in neuron_edits(D_MLP).items():
            with reference.changed(as_hooks(site, mask, factor, shift)):
                expected = reference.logits(ids)
            assert not close(expected, untouched, 1e-2), title
            with intervene(model, {site: mask}, edit):
                assert close(model.logits(ids), expected), title
        sites = ("q", "k", "v", "attn_out", "pre", "pre_linear", "mlp_out", "resid_pre")
        for site in (*[(each,) for each in sites], sites):
            edit, masks, changes = attention_edit(model, site)
            with reference.changed(changes):
                expected = reference.logits(ids)
            with intervene(model, masks, edit):
                assert close(model.logits(ids), expected), site
        assert close(model.logits(ids), untouched)

    @pytest.mark.parametrize("where", ["all", "prompt", "generated", "last"])
    def test_generation_is_that_of_torch_hooks(self, where: Any, classic: Any, plain: Any) -> None:
        from interp.interventions.edits import intervene, push
        from interp.models.load import wrap

        model, reference, (ids, attended) = wrap(classic()), plain("llama"), prompts()
        reference.hf.generation_config.eos_token_id = None
        mask, values = some_units(N_LAYERS, D_MLP), 2 * draw(N_LAYERS, D_MLP)
        with reference.changed(as_hooks("act", mask, 1.0, values), where, ids.shape[1]):
            expected = write_plain(reference, ids, attended, use_cache=False)
        assert not close(expected[1], write_plain(reference, ids, attended)[1], 1e-2)
        with intervene(model, mask, push({"act": values}), where):
            for cache in (True, False):
                settings = {"use_past_kv_cache": cache, "stop_at_eos": False}
                assert same_writing(write_ours(model, ids, attended, **settings), expected)
