"""Results that keep themselves: a file holds the fields of a frozen dataclass."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast, get_args, get_origin

from torch import Tensor

from interp.results import artifacts

One = TypeVar("One", bound="Saved")  # typing.Self, which the checks of shapes cannot read


class Saved:
    """Gives a frozen dataclass `save` and `load`: tensors stay tensors, other fields are labels."""

    kind: ClassVar[str]
    """What the file says that it holds."""

    made_by: ClassVar[str]
    """The call that makes such a result, for the error about a missing file."""

    def save(self, path: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write it whole or not at all, with where it comes from."""
        stored = self._stored()
        tensors = {
            name: value
            for name, value in stored.items()
            if isinstance(value, Tensor | artifacts.ChunkedTensor)
        }
        labels = {name: value for name, value in stored.items() if name not in tensors}
        artifacts.save(path, self.kind, tensors, labels, provenance or {})

    @classmethod
    def load(cls: type[One], path: Path | str) -> One:
        """Read one back; a file that is damaged, or holds something else, is refused.

        Anybody can write a file of any kind, with a checksum that fits. Axes of one name must be of
        one length, and labels be text.
        """
        wrong: str | None
        try:
            result = cls._restored(cls._opened(path))
            wrong = _misfit(result)
        except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
            result, wrong = None, str(error).split("\n")[0]
        if result is None or wrong is not None:
            raise ValueError(
                f"{path} does not hold what a result of its kind does ({wrong}): make it anew."
            )
        return result

    @classmethod
    def _opened(cls, path: Path | str) -> artifacts.Artifact:
        return artifacts.load(path, cls.kind, made_by=cls.made_by)

    def _stored(self) -> dict[str, Any]:
        """What goes into the file, by name."""
        return {field.name: getattr(self, field.name) for field in _fields(type(self))}

    @classmethod
    def _restored(cls: type[One], stored: artifacts.Artifact) -> One:
        """The result that a file holds."""
        values = {
            field.name: stored.tensors[field.name]
            if hasattr(field.type, "dim_str")  # jaxtyping's: a tensor
            else _label(field, stored.labels)
            for field in _fields(cls)
        }
        return cls(**stored.tensors | values)


def _fields(cls: type) -> tuple[Field[Any], ...]:
    return fields(cast(Any, cls))


def _label(field: Field[Any], labels: Mapping[str, Any]) -> Any:
    """A field's value; its default where an older file does not say."""
    if field.name not in labels and field.default is not MISSING:
        return field.default
    return _with_tuples(labels[field.name], field.type)


def _with_tuples(value: Any, type_: Any) -> Any:
    """JSON has lists for tuples, named tuples among them."""
    named = hasattr(type_, "_fields")
    if not named and get_origin(type_) is not tuple:
        return value
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} instead of a list")
    if named:
        return type_(*value)
    return tuple(_with_tuples(entry, get_args(type_)[0]) for entry in value)


def _misfit(result: Any) -> str | None:
    """What is not as the class says it is."""
    sizes: dict[str, int] = {}
    for field in fields(result) if is_dataclass(result) else ():
        value, type_ = getattr(result, field.name), field.type
        if isinstance(value, Tensor) and isinstance(getattr(type_, "dim_str", None), str):
            if not isinstance(value, cast(type, type_)):
                return f"{field.name} is {value.dtype} of shape {list(value.shape)}"
            for axis, size in zip(cast(Any, type_).dim_str.split(), value.shape, strict=True):
                if axis.isalpha() and sizes.setdefault(axis, size) != size:
                    return f"{field.name} has {size:,} for {axis}, and another part {sizes[axis]:,}"
        elif type_ == tuple[str, ...] and not all(isinstance(word, str) for word in value):
            return f"{field.name} is {value!r:.40}"
    languages = getattr(result, "languages", ())
    if len(languages) != sizes.get("language", len(languages)):
        return f"{len(languages)} languages for {sizes['language']}"
    return None
