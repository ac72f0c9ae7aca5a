"""The options of a subcommand, from the fields of its dataclass, and a page of help about them.

Fields are options, and what stands under a field is its help; the fields of a dataclass inside it
are options of the subcommand too. Argparse reads them, so that whatever is wrong with options is
said in one sentence, the help of a command fits a screen of 80 by 40, and neither loads a library.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from interp.commands.answers import AsJson, has_answer

WIDTH, COLUMN = 80, 23

Value = TypeVar("Value")
_POSITIONAL = "positional"
Positional = Annotated[Value, _POSITIONAL]
"""Marks a field that is given by its position, without its name: `path: Positional[Path]`. One
that may be left out, such as the model, may be given by its name too."""

_LABELS = "labels"
Labels = Annotated[tuple[str, ...], _LABELS]
"""Labels of text, such as language codes, which hold no comma."""


@dataclass(frozen=True)
class Option:
    """A field of a subcommand, or of a dataclass inside it."""

    name: str
    """Of the field; one that is a keyword of Python ends in an underscore."""

    owner: type
    """The dataclass that has the field."""

    positional: bool
    """Whether it is given by its position and not by its name."""

    kind: Any
    """int, float, bool, str or Path; of each value where there are several."""

    choices: tuple[str, ...]
    """The only words that it may be; none: it may be anything."""

    labels: bool
    """Whether they are labels, which hold no comma."""

    n_values: int | None
    """How many there are; None: any number."""

    default: Any
    """MISSING: there is none."""

    text: str
    """The first paragraph under the field; what follows it is for those who read the code."""

    @property
    def flag(self) -> str:
        return self.name.upper() if self.positional else self.named

    @property
    def named(self) -> str:
        """The flag that gives it by name."""
        return f"--{self.name.rstrip('_').replace('_', '-')}"

    @property
    def either(self) -> bool:
        """Whether it may be given by its position or by its name."""
        return self.positional and self.n_values == 1 and self.default is not MISSING

    @property
    def value(self) -> str:
        """What stands for its value in the help."""
        more = " ..." if self.n_values is None else ""
        if self.kind is bool or self.positional:
            return more
        names = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
        name = " WORD" if self.choices else f" {names[self.kind]}"
        return name * (self.n_values or 1) + more

    @property
    def help(self) -> str:
        text = " ".join(self.text.split()).rstrip(".")
        if any(not re.search(rf"\b{re.escape(word)}\b", text) for word in self.choices):
            text += f" ({', '.join(self.choices)})"
        nothing = (MISSING, None, False)  # compared by identity, since 0 equals False
        if any(self.default is value for value in nothing) or self.default in ((), ""):
            return text
        many = isinstance(self.default, tuple)
        return f"{text} [{' '.join(map(str, self.default)) if many else self.default}]"


JSON = Option(
    name="json",
    owner=AsJson,
    positional=False,
    kind=bool,
    choices=(),
    labels=False,
    n_values=1,
    default=False,
    text="Print the table as JSON, and messages to stderr.",
)
"""The option of every subcommand that has a table to print."""


def options_of(command: type) -> Iterator[Option]:
    """The options of a subcommand, those of the dataclasses inside it in their place."""
    hints, texts = get_type_hints(command, include_extras=True), _texts(command)
    for field in dataclasses.fields(command):
        hint = hints[field.name]
        marks = getattr(hint, "__metadata__", ())
        hint = hint.__origin__ if marks else hint
        if dataclasses.is_dataclass(hint):
            yield from options_of(hint)
            continue
        if NoneType in get_args(hint):
            (hint,) = [kind for kind in get_args(hint) if kind is not NoneType]
        n_values: int | None = 1
        if get_origin(hint) is tuple:
            n_values = None if Ellipsis in get_args(hint) else len(get_args(hint))
            hint = get_args(hint)[0]
        named = next((mark for mark in marks if isinstance(mark, tuple)), ())
        choices = get_args(hint) if get_origin(hint) is Literal else named
        yield Option(
            name=field.name,
            owner=command,
            positional=_POSITIONAL in marks,
            kind=str if choices else hint,
            choices=choices,
            labels=_LABELS in marks,
            n_values=n_values,
            default=field.default,
            text=texts[field.name],
        )


def _texts(command: type) -> dict[str, str]:
    """What stands under each field."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            assert isinstance(after, ast.Expr)
            texts[before.target.id] = inspect.cleandoc(ast.literal_eval(after.value))
    return {name: text.split("\n\n")[0] for name, text in texts.items()}


_IN_PYTHON = re.compile(r"[,;:]? (?:or )?in Python\b.*?(?=\.(?:\s|$)|$)")
"""What a refusal advises to those alone who call the library: the end of a sentence."""


_ALSO = {"block_length": "(?:max_length|row_tokens)", "draws": "n_draws"}
"""Name of an option, where the library calls it otherwise."""


def in_options(sentence: str, command: type) -> str:
    """A sentence of the library for the user of a command: `n_shards=20` as `--n-shards 20`,
    `n_draws is 0` as `--n-draws is 0`, and without what it advises "in Python"."""
    sentence = _IN_PYTHON.sub("", sentence)
    options = list(options_of(command))
    for name in {option.name for option in options} & _ALSO.keys():
        sentence = re.sub(rf"\b{_ALSO[name]}(?=[ =])", name, sentence)
    for option in options:
        if option.positional and not option.either:
            continue
        value = r"=([\"']?)(?:torch\.)?([\w.]*\w)\1"
        sentence = re.sub(rf"(?<![\w.-]){option.name}{value}", rf"{option.named} \2", sentence)
        sentence = re.sub(rf"^{option.name}(?= is )", option.named, sentence)
        if "_" in option.name:
            alone = rf"(?<![\w/.'\"-]){option.name}(?![\w/(='\"]|\.\w)"
            sentence = re.sub(alone, option.named, sentence)
    return sentence


class Parser(argparse.ArgumentParser):
    """Reads the options of one subcommand."""

    def __init__(self, name: str, command: type) -> None:
        super().__init__(prog=f"interp {name}", allow_abbrev=False, add_help=False)
        self.command, self.options = command, list(options_of(command))
        self.options += [JSON] if has_answer(command) else []
        self.add_argument("-h", "--help", action="help")
        for option in self.options:
            self._add(option)

    def _add(self, option: Option) -> None:
        if option.kind is bool:
            assert option.default is False, f"{option.flag} can only switch something on"
            self.add_argument(option.flag, action="store_true", default=argparse.SUPPRESS)
            return
        settings: dict[str, Any] = {"type": _READ[option.kind], "default": argparse.SUPPRESS}
        if option.choices:
            settings["choices"] = option.choices
        if option.n_values != 1:
            settings["nargs"] = "*" if option.n_values is None else option.n_values
        if option.positional:
            if option.either:
                self.add_argument(option.named, dest=option.named, **settings)
                settings["nargs"] = "?"
            self.add_argument(option.name, metavar=option.flag, **settings)
        else:
            needed = option.default is MISSING
            self.add_argument(option.flag, dest=option.name, required=needed, **settings)

    def read(self, arguments: Sequence[str]) -> Any:
        """The subcommand with its options; or help, or a sentence and exit code 2.

        With --json, what it prints is JSON.
        """
        values, unknown = self.parse_known_intermixed_args(list(arguments))
        if unknown:
            known = [option.named if option.either else option.flag for option in self.options]
            near = difflib.get_close_matches(unknown[0], known, n=1)
            perhaps = f"; did you mean {near[0]}?" if near else "."
            self.error(f"there is no place for {' '.join(unknown)}{perhaps}")
        command = self._made(self.command, self._checked(vars(values)))
        return AsJson(command) if getattr(values, JSON.name, False) else command

    def _checked(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values by field; what was given by name where it could be given by position too."""
        for option in self.options:
            if option.named in values:
                if option.name in values:
                    self.error(
                        f"{option.flag} is {values[option.name]!r} and {option.named} is "
                        f"{values[option.named]!r}; give it once"
                    )
                values[option.name] = values.pop(option.named)
            if option.labels and any("," in label for label in values.get(option.name, ())):
                labels = " ".join(values[option.name]).replace(",", " ").split()
                self.error(f"{option.flag} takes labels with spaces between: {' '.join(labels)}")
        return values

    def _made(self, kind: type, values: Mapping[str, Any]) -> Any:
        given: dict[str, Any] = {}
        for option in self.options:
            if option.owner is kind and option.name in values:
                value = values[option.name]
                given[option.name] = value if option.n_values == 1 else tuple(value)
            elif option.owner is kind and option.default is MISSING:  # any number of them: none
                given[option.name] = ()
        for field in dataclasses.fields(kind):
            inner = get_type_hints(kind)[field.name]
            if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                given[field.name] = self._made(inner, values)
        return kind(**given)

    def error(self, message: str) -> NoReturn:
        sentence = message.removeprefix("argument ").rstrip(".")
        sentence += "" if sentence.endswith("?") else "."
        sys.stderr.write(f"{self.prog}: {sentence} All its options: {self.prog} --help\n")
        raise SystemExit(2)

    def format_help(self) -> str:
        """Usage, what it does, examples, and a line or two for each option."""
        first = [option for option in self.options if option.positional]
        others = [option for option in self.options if not option.positional]
        needed = [option for option in others if option.default is MISSING]
        named = [option.flag + option.value for option in first]
        usage = [
            name if option.default is MISSING else f"[{name}]"
            for name, option in zip(named, first, strict=True)
        ]
        usage += [option.flag + option.value for option in needed]
        usage += ["[options]"] if len(first) + len(needed) < len(self.options) else []
        lines = [f"usage: {' '.join([self.prog, *usage])}", *_description(self.command), ""]
        for option in [*first, *others]:
            also = f", {option.named}" if option.either else ""
            lines += _entry(option.flag + option.value + also, option.help)
        return "\n".join(lines).rstrip() + "\n"


def _number(kind: type, what: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{what} is expected, not {text!r}") from None
        if kind is float and not math.isfinite(number):
            raise argparse.ArgumentTypeError(f"{what} is expected, not {text!r}")
        if kind is int and abs(number) >= 2**63:
            raise argparse.ArgumentTypeError(f"{text[:12]}... is too large a number")
        if kind is int and number < 0:  # nothing is counted from below zero
            raise argparse.ArgumentTypeError(f"{what}, zero or more, is expected, not {text!r}")
        return number

    return read


_READ: dict[type, Callable[[str], Any]] = {
    int: _number(int, "a whole number"),
    float: _number(float, "a number"),
    str: str,
    Path: Path,
}


def _description(command: type) -> Iterator[str]:
    """The docstring: text filled to the width, examples as they are."""
    for paragraph in (inspect.getdoc(command) or "").split("\n\n"):
        yield ""
        if paragraph.strip().startswith(("interp ", "printf ")):
            yield from textwrap.indent(textwrap.dedent(paragraph).strip("\n"), "  ").split("\n")
        else:
            yield from textwrap.wrap(" ".join(paragraph.split()), WIDTH - 1)


def _entry(name: str, text: str) -> list[str]:
    """A name in the left column, and beside it what there is to say."""
    rows = textwrap.wrap(text, WIDTH - 1 - COLUMN, break_on_hyphens=False)
    if len(name) > COLUMN - 3:
        rows.insert(0, "")
    return [
        f"{f'  {name}' if n == 0 else '':<{COLUMN}}{row}".rstrip() for n, row in enumerate(rows)
    ]
