"""What public functions take as a model: that of `load`, or a bare model of TransformerLens."""

import importlib
from typing import Any

from interp.models.bare_model import BareModel
from interp.models.neuron_model import NeuronModel

_KEPT = "_neuron_model"
"""The attribute of a bare model that holds its wrapper: nothing else does, so both are freed
together."""

AnyModel = NeuronModel | BareModel
"""A model that every public function takes."""


def as_model(model: Any) -> NeuronModel:
    """The model with neurons that have names: itself, or the wrapper of a bare model.

    A bare model is wrapped once, and again if its weights or tokenizer were changed since.
    """
    if isinstance(model, NeuronModel):
        return model
    if isinstance(model, type) or not isinstance(model, BareModel):
        given = repr(model) if isinstance(model, str) else f"a {type(model).__name__}"
        name = repr(model) if isinstance(model, str) else "name"
        raise ValueError(
            f"A model is what interp.load gives, a TransformerBridge or a HookedTransformer, not "
            f"{given}: open it with interp.load({name})."
        )
    state = _state(model)
    known, before = vars(model).get(_KEPT, (None, None))
    if known is None or before != state:
        # Imported only here, as TransformerLens takes seconds, and who holds its model has it.
        known = importlib.import_module("interp.models.load").wrap(model)
        vars(model)[_KEPT] = (known, state)
    return known


def _state(model: Any) -> tuple[Any, ...]:
    """Changes if the tokenizer or a parameter is replaced, or one is converted or written to."""
    module = getattr(model, "original_model", model)
    versions = (
        (id(parameter), parameter.dtype, 0 if parameter.is_inference() else parameter._version)
        for parameter in module.parameters()
    )
    return id(model.tokenizer), *versions
