"""act(gate) during a pass, as the model itself computes it.

An activation function takes longer than everything that is summed of its output. So the output of
the model's own module is taken where that was called with the gate as it stands, and the function
is called once more only where it was not: TransformerLens's own MLP calls a function of torch.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from interp.models.neuron_model import NeuronModel

Hook = Callable[[Tensor, Any], None]


class Activated:
    """Calls a layer's hook with its act(gate), once a pass: at the latest with the output."""

    def __init__(self, model: NeuronModel, hook: Callable[[int], Hook]) -> None:
        self._model, self._hook = model, hook
        self._gates: dict[int, Tensor] = {}  # of layers whose act(gate) has yet to come

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Within the block, in passes of the model."""
        model, layers = self._model, range(self._model.n_layers)
        sites = [(model.site(layer, "pre"), self._holds(layer)) for layer in layers]
        sites += [(model.site(layer, "post"), self._computes(layer)) for layer in layers]
        modules = {id(m): m for m in map(model.activation, layers) if isinstance(m, nn.Module)}
        with model.hooks(sites), ExitStack() as stack:
            for module in modules.values():
                handle = module.register_forward_hook(self._takes)
                stack.callback(handle.remove)
            yield

    def _holds(self, layer: int) -> Hook:
        def hold(gate: Tensor, hook: Any) -> None:
            self._gates[layer] = gate

        return hold

    def _takes(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        gate = inputs[0] if inputs else None
        layer = next((layer for layer, held in self._gates.items() if held is gate), None)
        if layer is not None and isinstance(output, Tensor):
            del self._gates[layer]
            self._hook(layer)(output, module)

    def _computes(self, layer: int) -> Hook:
        def compute(outputs: Tensor, hook: Any) -> None:
            gate = self._gates.pop(layer, None)
            if gate is not None:
                self._hook(layer)(self._model.act(layer, gate), hook)

        return compute
