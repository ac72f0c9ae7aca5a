"""A control vector holds what an edit adds to the residual stream, and nothing else is written."""

from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from interp.cli import main
from interp.counting.collect import Keep, collect
from interp.counting.run import Run
from interp.interventions.control_vector import directions
from interp.interventions.edits import Change, deactivate, difference_of_means, push
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select_by_entropy
from tests import test_bake
from tests.campaigns import kills
from tests.test_bake import (
    NORMED,
    assert_close,
    every_model,
    nothing_is_left,
    plain,
    some_ids,
    some_units,
    some_values,
)
from tests.tiny_models import D_MODEL, N_LAYERS

checkpoint, open_model, llama = test_bake.checkpoint, test_bake.open_model, test_bake.llama


def read(file: Any) -> dict[int, Tensor]:
    tensors = gguf.GGUFReader(file).tensors
    return {int(t.name.removeprefix("direction.")): torch.tensor(t.data) for t in tensors}


def blocks(model: Any) -> Any:
    """The layers of a Hugging Face model."""
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


@torch.no_grad()
def steered(model: Any, vectors: dict[int, Tensor], ids: Tensor) -> Tensor:
    """As llama.cpp and repeng do: each direction is added to what its layer gives."""

    def add(vector: Tensor) -> Any:
        def hook(module: Any, given: Any, output: Any) -> Any:
            return (
                (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector
            )

        return hook

    handles = [blocks(model)[n].register_forward_hook(add(v)) for n, v in vectors.items()]
    logits = model(ids).logits
    for handle in handles:
        handle.remove()
    return logits


@every_model
def test_a_file_does_what_the_hooks_do(name, open_model, checkpoint, tmp_path):
    """Pushes of the stream after a layer, before the next, of an MLP's output and of neurons."""
    model = open_model(name)
    sites: list[Any] = ["resid_post", *(() if name in NORMED else ("post", "mlp_out"))]
    units = {site: some_units(model, site) for site in sites}  # none in layer 0
    units["resid_pre"] = some_units(model, "resid_pre")
    units["resid_pre"][1] = False
    change = Change(units, push({site: some_values(model, site) for site in units}, 0.5))
    file = change.to_control_vector(model, tmp_path / "push.gguf")
    ids = some_ids()
    with torch.no_grad(), model.hooks(change.hooks(model)):
        hooked = model.logits(ids)
    base = plain(checkpoint(name))
    assert (base(ids).logits - hooked).abs().max() > 0.01 * hooked.abs().max()
    found = read(file)
    assert set(found) == set(range(1, N_LAYERS))
    assert_close(steered(base, found, ids), hooked, 1e-5)
    if name in NORMED:
        at_post = Change(some_units(model), push({"post": some_values(model)}))
        with pytest.raises(ValueError, match="at post of layer 1, and a control vector adds to"):
            directions(at_post, model)


def test_it_is_a_file_of_llama_cpp(llama, tmp_path):
    """The keys that llama.cpp and repeng look for."""
    change = Change(
        {"resid_post": some_units(llama, "resid_post")},
        push({"resid_post": some_values(llama, "resid_post")}),
    )
    reader = gguf.GGUFReader(change.to_control_vector(llama, tmp_path / "push.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == N_LAYERS - 1
    assert all(list(tensor.shape) == [D_MODEL] for tensor in reader.tensors)
    assert all(tensor.tensor_type.name == "F32" for tensor in reader.tensors)


def test_what_does_not_only_add_is_refused(llama, tmp_path):
    stream = some_units(llama, "resid_post")
    values = {"resid_post": some_values(llama, "resid_post")}
    first = stream.clone()
    first[0] = True
    refused = {
        "deactivate multiplies, and a control vector only adds": Change(
            some_units(llama), deactivate
        ),
        "push is of tokens='last', and a control vector only adds": Change(
            {"resid_post": stream}, push(values), "last"
        ),
        "llama.cpp adds nothing after layer 0": Change({"resid_post": first}, push(values)),
        "push is at pre of layer 1": Change(
            {"pre": some_units(llama, "pre")}, push({"pre": some_values(llama, "pre")})
        ),
    }
    for match, change in refused.items():
        with pytest.raises(ValueError, match=match):
            change.to_control_vector(llama, tmp_path / "push.gguf")
        assert nothing_is_left(tmp_path)
    change = Change({"resid_post": stream}, push(values))
    change.to_control_vector(llama, tmp_path / "push.gguf")
    with pytest.raises(ValueError, match=r"push\.gguf exists: name a new file"):
        change.to_control_vector(llama, tmp_path / "push.gguf")


@pytest.mark.slow
def test_the_command_writes_a_push_towards_a_language(llama, checkpoint, tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    for code, lines in kills.made_up().items():
        (text / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    run = tmp_path / "run"
    keep = Keep(moments=True)
    collect(llama, kills.blocks(llama), run, keep=keep, progress=False)
    select_by_entropy(Run.open(run).firing, 0.1, 0.5).to_json(run / "neurons.json")
    command = ["vector", str(run), str(checkpoint("llama")), "--language", "de"]
    for name, options in {
        "stream": ["--text", str(text), "--layer", "1", "--strength", "2"],
        "neurons": ["--push", "neurons"],
    }.items():
        if name == "neurons":
            selection = NeuronSelection.from_json(run / "neurons.json")
            selection.mask[:, 0] = False  # llama.cpp adds nothing after layer 0
            selection.to_json(run / "neurons.json")
        main([*command, *options, "--out", str(tmp_path / f"{name}.gguf")])
    assert "--control-vector" in capsys.readouterr().out
    assert {layer for layer, vector in read(tmp_path / "stream.gguf").items() if vector.any()} == {
        1
    }
    selection = NeuronSelection.from_json(run / "neurons.json")
    edit = difference_of_means(Run.open(run).moments, "de", site="post")
    wanted = directions(selection.change("de", edit), llama)
    found = read(tmp_path / "neurons.gguf")
    assert wanted.any()
    for layer in range(1, N_LAYERS):
        assert torch.allclose(found[layer], wanted[layer], atol=1e-6)
    with pytest.raises(SystemExit):
        main([*command, "--push", "neurons", "--layer", "1", "--out", str(tmp_path / "new.gguf")])
    assert "have no effect with --push neurons" in capsys.readouterr().err
