"""The type checker of the tests: beartype, which makes a check when it is first needed, and once.

jaxtyping's import hook decorates every function of the library when its module is imported, and an
inner function again whenever the outer one is called. Making the check takes a millisecond or two:
a third of the suite's time went into checks that equaled others or were never needed.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype

Function = Callable[..., Any]

_made: dict[tuple[Any, ...], Function] = {}


def check(function: Function) -> Function:
    """`beartype(function)`, made at the first call.

    jaxtyping passes no function of the library but an empty one with the same annotations, so two
    inner functions that differ only in what they close over share a check.
    """
    made: Function | None = None

    def checked(*args: Any, **settings: Any) -> Any:
        nonlocal made
        if made is None:
            made = _inner(function) if "<locals>" in function.__qualname__ else beartype(function)
        return made(*args, **settings)

    return checked


def _inner(function: Function) -> Function:
    """The check of an inner function, shared by all with its name, parameters and annotations."""
    code = function.__code__
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    defaults = (len(function.__defaults__ or ()), *sorted(function.__kwdefaults__ or ()))
    annotations = tuple((name, _value(each)) for name, each in function.__annotations__.items())
    names = (function.__module__, function.__qualname__, code.co_varnames)
    key = (names, shape, defaults, annotations)
    try:
        hash(key)
    except TypeError:  # an annotation without a hash
        return beartype(function)
    if key not in _made:
        _made[key] = beartype(function)
    return _made[key]


def _value(annotation: Any) -> Any:
    """What equal annotations have in common: `Float[Tensor, "..."]` is a new class every time."""
    if hasattr(annotation, "dim_str"):
        return annotation.array_type, annotation.dtypes, annotation.dim_str
    return annotation
