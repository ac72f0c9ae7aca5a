"""Saving a frozen dataclass of results to a file, and loading it back."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast, get_args, get_origin

from torch import Tensor

from interp.results import artifacts
from interp.results.display import Shown

Result = TypeVar("Result", bound="Saved")  # the shape checks cannot read typing.Self


class Saved(Shown):
    """Gives a frozen dataclass `save` and `load`: tensors stay tensors, other fields are labels."""

    kind: ClassVar[str]
    """What the file's header says it holds."""

    made_by: ClassVar[str]
    """The call that makes such a result, for the missing-file error."""

    def save(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write it atomically, with its provenance."""
        stored = self._stored()
        tensors = {
            name: value
            for name, value in stored.items()
            if isinstance(value, Tensor | artifacts.ChunkedTensor)
        }
        labels = {name: value for name, value in stored.items() if name not in tensors}
        artifacts.save(path, self.kind, tensors, labels, provenance or {})

    @classmethod
    def load(cls: type[Result], path: Path | str) -> Result:
        """Read a result back; a file that is damaged, or holds something else, is refused.

        Anybody can write a file of any kind with a valid checksum, so its values are checked too:
        axes of the same name must have the same length, and labels must be text.
        """
        problem: str | None
        try:
            result = cls._restored(cls._opened(path))
            problem = _misfit(result)
        except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
            result, problem = None, str(error).split("\n")[0]
        if result is None or problem is not None:
            raise ValueError(
                f"{path} does not hold a valid {cls.kind} result ({problem}): recreate it."
            )
        return result

    @classmethod
    def _opened(cls, path: Path | str) -> artifacts.Artifact:
        return artifacts.load(path, cls.kind, made_by=cls.made_by)

    def _stored(self) -> dict[str, Any]:
        """Everything that goes into the file, by name."""
        return {field.name: getattr(self, field.name) for field in _fields(type(self))}

    @classmethod
    def _restored(cls: type[Result], stored: artifacts.Artifact) -> Result:
        """The result stored in a file."""
        values: dict[str, Any] = {}
        for field in _fields(cls):
            left_out = _may_be_none(field) and field.name not in stored.tensors
            if _tensor_type(field) is None or left_out:
                values[field.name] = _label(field, stored.labels)
            else:
                values[field.name] = stored.tensors[field.name]
        return cls(**stored.tensors | values)


def _fields(cls: type) -> tuple[Field[Any], ...]:
    return fields(cast(Any, cls))


def _tensor_type(field: Field[Any]) -> Any:
    """The annotation of a tensor, which may be left out (`| None`); None: it is no tensor."""
    kinds = get_args(field.type) if _may_be_none(field) else (field.type,)
    return next((kind for kind in kinds if isinstance(getattr(kind, "dim_str", None), str)), None)


def _may_be_none(field: Field[Any]) -> bool:
    return type(None) in get_args(field.type)


def _label(field: Field[Any], labels: Mapping[str, Any]) -> Any:
    """A field's value, or its default if an older file lacks it."""
    if field.name not in labels and field.default is not MISSING:
        return field.default
    return _with_tuples(labels[field.name], field.type)


def _with_tuples(value: Any, type_: Any) -> Any:
    """Turn JSON lists back into tuples and named tuples."""
    named = hasattr(type_, "_fields")
    if not named and get_origin(type_) is not tuple:
        return value
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} instead of a list")
    if named:
        return type_(*value)
    return tuple(_with_tuples(entry, get_args(type_)[0]) for entry in value)


def _misfit(result: Any) -> str | None:
    """The first mismatch with the class's annotations; None: all match."""
    sizes: dict[str, int] = {}
    for field in fields(result) if is_dataclass(result) else ():
        value, type_ = getattr(result, field.name), _tensor_type(field) or field.type
        if isinstance(value, Tensor) and hasattr(type_, "dim_str"):
            if not isinstance(value, cast(type, type_)):
                return f"{field.name} is {value.dtype} of shape {list(value.shape)}"
            for axis, size in zip(cast(Any, type_).dim_str.split(), value.shape, strict=True):
                if axis.isalpha() and sizes.setdefault(axis, size) != size:
                    return (
                        f"{field.name} has {size:,} for {axis}, another field has {sizes[axis]:,}"
                    )
        elif type_ == tuple[str, ...] and not all(isinstance(word, str) for word in value):
            return f"{field.name} is {value!r:.40}"
    languages = getattr(result, "languages", ())
    if len(languages) != sizes.get("language", len(languages)):
        return f"{len(languages)} languages for {sizes['language']}"
    return None
