"""Path patching against plain hooks, one whole prompt at a time, and against sums done by hand."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.models.neuron_model import NeuronModel
from interp.prompts.alignment import PatchSource, align_prompts
from interp.prompts.patch_paths import routes
from interp.prompts.patching import heads, patch
from interp.text.tokens import prompt_ids
from tests import test_patching
from tests.test_model import every_architecture
from tests.test_patching import ANSWERS, SHAPES, SOURCE, TARGET, answers_of, plain, seen, some_ids
from tests.tiny_models import N_LAYERS

open_model = test_patching.open_model

Write = tuple[Any, int, int, Tensor, Tensor]
"""A site, a layer, a position, units and their values, as `plain` takes them."""

GIVEN, AT = PatchSource(SOURCE, ("quiet", "sea")), ("dog", "the city")
ALL: Any = ("through", "around", "direct")


def during(model: NeuronModel, ids: Sequence[int], site: Any, writes: Sequence[Write]) -> Any:
    """What a site has in every layer while these values are written."""
    found: dict[int, Tensor] = {}
    hooks: list[Any] = []
    for where, layer, pos, units, values in writes:

        def write(given: Tensor, hook: Any, pos: Any = pos, units: Any = units, new: Any = values):
            flat = given.flatten(2).clone()
            flat[0, pos, units] = new.to(flat)
            return flat.reshape(given.shape)

        hooks.append((model.site(layer, where), write))
    for layer in range(model.n_layers):

        def read(given: Tensor, hook: Any, layer: int = layer) -> None:
            found[layer] = given[0].flatten(1).clone()

        hooks.append((model.site(layer, site), read))
    with model.hooks(hooks), torch.no_grad():
        model.logits(torch.tensor([list(ids)]))
    return found


def by_definition(
    model: NeuronModel,
    clean: Mapping[Any, dict[int, Tensor]],
    path: str,
    sender: Sequence[Write],
    receivers: Mapping[Any, Tensor],
    between: Sequence[tuple[Any, int]],
) -> Tensor:
    """The answers, by whole prompts: one to see the receivers, one to write them."""
    ids = prompt_ids(model, TARGET)
    held = []
    if path == "direct":
        every = torch.arange(model.d_model)
        for (site, layer), pos in product(between, range(len(ids))):
            held.append((site, layer, pos, every, clean[site][layer][pos]))
    writes = [*sender] if path == "around" else []
    for site, mask in receivers.items():
        values = clean[site]
        if path != "around":
            values = during(model, ids, site, [*sender, *held])
        for layer, pos in product(range(model.n_layers), range(len(ids))):
            units = mask[layer].nonzero().flatten()
            writes.append((site, layer, pos, units, values[layer][pos, units]))
    return answers_of(plain(model, ids, writes))


def clean_of(model: NeuronModel, *sites: Any) -> dict[Any, dict[int, Tensor]]:
    ids = prompt_ids(model, TARGET)
    return {site: seen(model, ids, site) for site in sites}


def mask_of(model: NeuronModel, site: Any, share: float, seed: int) -> Tensor:
    drawn = torch.rand(
        model.n_layers, model.width(0, site), generator=torch.Generator().manual_seed(seed)
    )
    return drawn < share


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [*product(["llama", "bloom", "gemma2"], ["each"]), ("llama", "from"), ("gemma2", "from")],
)
def test_every_path_equals_whole_prompts_with_hooks(open_model, name, layers):
    """From the residual stream to some neurons, and to several sites at once."""
    model = open_model(name, "hooked")
    receivers: dict[str, Any] = {
        "set": {"post": mask_of(model, "post", 0.3, 0)},
        "two": {"pre": mask_of(model, "pre", 0.2, 1), "attn_out": mask_of(model, "attn_out", 1, 2)},
    }
    receivers["set"]["post"][1] = False
    paths = ALL if layers == "each" else ALL[:2]
    found = patch(
        model, GIVEN, TARGET, ANSWERS, "resid_post", layers, AT,
        receivers=receivers, paths=paths, max_positions=40,
    )  # fmt: skip
    words = {"through": "through", "around": "around", "direct": "direct to"}
    assert found.parts == (
        "resid_post",
        *(f"resid_post {words[path]} {other}" for other in receivers for path in paths),
    )
    spans = align_prompts(model, GIVEN, TARGET, AT)
    values = seen(model, prompt_ids(model, SOURCE), "resid_post")
    clean = clean_of(model, "pre", "post", "attn_out", "mlp_out")
    every = torch.arange(model.d_model)
    moved = []
    for layer, (s, span) in product((0, model.n_layers - 2), enumerate(spans)):
        sender = [
            ("resid_post", n, mine, every, values[n][theirs])
            for n in range(layer, layer + 1 if layers == "each" else model.n_layers)
            for theirs, mine in zip(span.source, span.target, strict=True)
        ]
        later = [
            (site, n) for n in range(layer + 1, model.n_layers) for site in ("attn_out", "mlp_out")
        ]
        for part, (other, path) in enumerate(product(receivers, paths), start=1):
            # Layers up to the sender's do not depend on it, but are written in the definition too.
            expected = by_definition(model, clean, path, sender, receivers[other], later)
            difference = (found.value[0, part, layer, s] - expected).abs().max()
            assert difference < 3e-4, (other, path, layer, s)
            moved.append((expected - found.value[0, 0, layer, s]).abs().max())
    assert max(moved) > 1e-2  # a path is not the whole effect
    if layers == "each":
        direct, through = found.value[0, 3], found.value[0, 1]
        assert (direct - through).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bloom", "pythia"])
def test_paths_from_a_head_to_neurons(open_model, name):
    """The MLP of the same layer reads attention, unless the two are parallel."""
    model = open_model(name, "hooked")
    sender = {"head": heads(model)["head 1"]}
    receivers = {"post": mask_of(model, "post", 0.5, 0)}
    found = patch(
        model, GIVEN, TARGET, ANSWERS, sender, "each", AT,
        receivers={"set": receivers}, paths=ALL,
    )  # fmt: skip
    spans = align_prompts(model, GIVEN, TARGET, AT)
    values = seen(model, prompt_ids(model, SOURCE), "z")
    clean = clean_of(model, "post", "attn_out", "mlp_out")
    for layer, (s, span) in product(range(model.n_layers), enumerate(spans)):
        units = sender["head"]["z"][layer].nonzero().flatten()
        writes = [
            ("z", layer, mine, units, values[layer][theirs, units])
            for theirs, mine in zip(span.source, span.target, strict=True)
        ]
        between: list[tuple[Any, int]] = [("mlp_out", layer)]
        between += [(e, n) for n in range(layer + 1, N_LAYERS) for e in ("attn_out", "mlp_out")]
        for part, path in enumerate(ALL, start=1):
            expected = by_definition(model, clean, path, writes, receivers, between)
            assert (found.value[0, part, layer, s] - expected).abs().max() < 3e-4, (path, layer)
    last = found.value[0, :, -1] - found.unpatched
    assert last[0].abs().max() > 1e-3
    alone = (last[1].abs().max() < 1e-5) == (name == "pythia")  # parallel: no path in one layer
    assert alone


@pytest.mark.slow
@every_architecture
def test_what_is_written_directly_adds_to_the_last_stream(open_model, name):
    """By hand: the clean stream after the last layer, plus how far the patch moves the sender."""
    model = open_model(name, "hooked")
    source, ids = some_ids(6, 1), some_ids(6, 2)
    for site in ("attn_out", "mlp_out", "resid_pre"):
        found = patch(
            model, source, ids, ANSWERS, site, at="last", receivers="resid_post", paths=["direct"]
        )
        assert found.parts == (site, f"{site} direct to resid_post")
        theirs, mine = (seen(model, each.tolist(), site) for each in (source, ids))
        clean = seen(model, ids.tolist(), "resid_post")[N_LAYERS - 1][-1]
        every = torch.arange(model.d_model)
        for layer in range(N_LAYERS):
            moved = clean + theirs[layer][-1] - mine[layer][-1]
            row = plain(model, ids.tolist(), [("resid_post", N_LAYERS - 1, 5, every, moved)])
            assert (found.value[0, 1, layer, 0] - answers_of(row)).abs().max() < 3e-4
        assert (found.value[0, 1] - found.value[0, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", SHAPES)
def test_laws_of_paths(open_model, name):
    """Through everything: the whole effect. Around everything, or through nothing later: none."""
    model = open_model(name)
    none_later = torch.zeros(N_LAYERS, model.d_mlp, dtype=torch.bool)
    none_later[0] = True
    receivers: dict[str, Any] = {"stream": "resid_post", "before": none_later}
    found = patch(model, GIVEN, TARGET, ANSWERS, "mlp_out", "each", AT, receivers=receivers)
    whole, through, around, through_before, around_before = found.value[0]
    assert (whole - found.unpatched).abs().max() > 1e-2
    assert (through - whole).abs().max() < 1e-4
    assert (around - found.unpatched).abs().max() < 1e-4
    assert (through_before - found.unpatched).abs().max() < 1e-4
    assert (around_before - whole).abs().max() < 1e-4


def test_the_patched_units_are_no_receivers(open_model):
    """Neurons as senders and, in later layers, as receivers."""
    model = open_model("llama")
    units = mask_of(model, "post", 0.3, 5)
    both = patch(model, GIVEN, TARGET, ANSWERS, {"set": units}, "each", AT, receivers=units)
    assert both.parts == ("set", "set through neurons", "set around neurons")
    for layer in range(N_LAYERS):
        later = units.clone()
        later[: layer + 1] = False
        if layer < N_LAYERS - 1:
            alone = patch(
                model, GIVEN, TARGET, ANSWERS, {"set": units}, "each", AT, receivers=later
            )
            assert (both.value[0, :, layer] - alone.value[0, :, layer]).abs().max() < 1e-5
    assert (both.value[0, 1, -1] - both.unpatched).abs().max() < 1e-5
    assert (both.value[0, 2, -1] - both.value[0, 0, -1]).abs().max() < 1e-5
    assert (both.value[0, 1] - both.value[0, 2]).abs().max() > 1e-3


def test_controls_take_the_same_paths(open_model, generator):
    model = open_model("llama")
    units = mask_of(model, "post", 0.2, 5)
    found = patch(
        model, SOURCE, TARGET, ANSWERS, "resid_post", generator=generator,
        receivers={"set": units}, paths=["through"],
    )  # fmt: skip
    assert found.sources == ("source", "noise")
    assert found.parts == ("resid_post", "resid_post through set", "resid_post through random set")
    assert found.value.isfinite().all()
    assert (found.value[0, 1] - found.value[0, 2]).abs().max() > 1e-4
    assert (found.value[0, 1] - found.value[1, 1]).abs().max() > 1e-4


def test_paths_that_make_no_sense_are_refused(open_model: Callable[..., Any]):
    model = open_model("llama")
    units = mask_of(model, "post", 0.2, 5)
    wrong: Any = ["past"]
    with pytest.raises(ValueError, match="Paths are through, direct, around, not 'past'"):
        inspect.unwrap(routes)(model, {}, {}, wrong, "each")
    with pytest.raises(ValueError, match=r"begins in one layer, and layers='from' patches several"):
        patch(model, SOURCE, TARGET, ANSWERS, layers="from", receivers=units, paths=["direct"])
    with pytest.raises(ValueError, match=r"'attn_out' is not a site .* attention=\"hooked\""):
        patch(model, SOURCE, TARGET, ANSWERS, receivers=units, paths=["direct"])
    with pytest.raises(ValueError, match="'none' has no unit"):
        patch(model, SOURCE, TARGET, ANSWERS, receivers={"none": torch.zeros_like(units)})
