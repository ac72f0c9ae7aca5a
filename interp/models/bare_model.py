"""What a bare model of TransformerLens is recognized by; this module imports no model."""

import importlib
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class BareModel(Protocol):
    """A TransformerBridge, or a HookedTransformer of TransformerLens 3.9."""

    @property
    def hook_dict(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    def run_with_cache(self, *inputs: Any, **settings: Any) -> Any: ...


def wrapped(model: Any) -> Any:
    """As `any_model.as_model`, for code that is used without a library of models."""
    return importlib.import_module("interp.models.any_model").as_model(model)
