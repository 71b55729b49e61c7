"""One field of a list of options: what it means, how the command line writes it, how it is checked, what a plan keeps of it.

A list of options is a frozen dataclass whose fields are made by `option`. Command line, checks, plans and documentation read the fields:

    @documented
    @dataclass(frozen=True)
    class Options:
        samples: int = option(512, whole_number(1), "Use at most so many samples of --data.", cli={"type": int}, stored=True)

so that a further option is one further field, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from onnxprune.choose.checks import Check, files, known

T = TypeVar("T")
U = TypeVar("U")
KEY = "onnxprune"
Replay = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Field:
    """What is known of an option beside its name, type and default.

    check: takes the flag and a value, gives the value or raises `BadInputError`. help: one sentence.
    flag: on the command line where the name does not say it, such as `--input-shape`.
    cli: what `click.option` needs (`cli/common.py`); None where only Python has it. by_default: what None stands for, in words.
    commands: those that take it, of the commands that take the list; empty: all of them.
    decided: a plan has decided that, so that it does not go with `--apply`.
    stored: a plan keeps it. replay: its value where a plan is applied, from the given and the stored value (None: not stored).
    """

    check: Check
    help: str
    flag: str
    cli: Mapping[str, Any] | None
    by_default: str
    commands: tuple[str, ...]
    decided: bool
    stored: bool
    replay: Replay


def option(
    default: Any,
    check: Check,
    help: str,
    *,
    flag: str = "",
    cli: Mapping[str, Any] | None = None,
    python_only: bool = False,
    by_default: str = "",
    commands: tuple[str, ...] = (),
    decided: bool = False,
    stored: bool = False,
    replay: Replay = lambda given, stored: given,
) -> Any:
    """A field of a list of options; see `Field`. A dict as default is copied."""
    metadata = {
        KEY: Field(check, help, flag, None if python_only else cli or {}, by_default, commands, decided, stored, replay)
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def options(of: type, command: str | None = None) -> Iterator[tuple[dataclasses.Field[Any], Field]]:
    """The fields of a list of options that a command takes; None: all."""
    for field in fields(of):
        told: Field = field.metadata[KEY]
        if command is None or not told.commands or command in told.commands:
            yield field, told


def flag_of(field: dataclasses.Field[Any]) -> str:
    """How the command line writes it, and messages."""
    told: Field = field.metadata[KEY]
    return told.flag or f"--{field.name.replace('_', '-')}"


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The value where none is given."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def checked(of: type[T], given: Mapping[str, Any], command: str | None = None) -> T:
    """The options with these values. command: takes only its own. Raises `BadInputError`, in one sentence."""
    own = list(options(of, command))
    known(given, [field.name for field, _ in own])
    values = {f.name: told.check(flag_of(f), given[f.name]) for f, told in own if f.name in given}
    return of(**values)


def both(of: type[T], other: type[U], given: Mapping[str, Any], command: str) -> tuple[T, U]:
    """As `checked`, where a command takes the options of two lists."""
    mine, theirs = several((of, other), given, command)
    return mine, theirs


def several(lists: Sequence[type], given: Mapping[str, Any], command: str) -> list[Any]:
    """As `checked`, where a command takes the options of several lists, no two of which have one of the same name."""
    names = [[field.name for field, _ in options(of, command)] for of in lists]
    known(given, [name for own in names for name in own])
    parts = ({n: given[n] for n in own if n in given} for own in names)
    return [checked(of, part, command) for of, part in zip(lists, parts, strict=True)]


def documented(of: type[T]) -> type[T]:
    """Put the fields with type, default and meaning into the docstring of a list of options."""
    lines = []
    for field, told in options(of):
        default = told.by_default or repr(default_of(field))
        lines.append(f"{field.name}: {field.type} = {default}\n    {told.help}")
    of.__doc__ = "\n\n".join(filter(None, [(of.__doc__ or "").rstrip(), "\n".join(lines)]))
    return of


def custom_ops_option(commands: tuple[str, ...] = ()) -> Any:
    """`custom_ops`, which every list of options of a command that runs a model has."""
    return option(
        (),
        files,
        "A library of operators of your own, for ONNX Runtime to load.",
        cli={"multiple": True, "path": True, "metavar": "LIBRARY"},
        by_default="none",
        commands=commands,
    )
