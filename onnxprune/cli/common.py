"""What all commands share: the consoles, options with the same name, and one sentence instead of a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
from click.core import ParameterSource

from onnxprune.choose.field import Field, default_of, flag_of
from onnxprune.choose.field import options as fields_of
from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


WIDE = 10_000
"""Columns where no terminal reads: a file or the next command gets every name whole."""


class _Console:
    """A console that is made when something is printed, so that `--help` need not load what prints."""

    def __init__(self, **how: Any) -> None:
        self._how = how

    @cached_property
    def _made(self) -> Console:
        from rich.console import Console

        made = Console(highlight=False, soft_wrap=True, **self._how)
        if not made.is_terminal:
            made.width = WIDE
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


OUT = _Console()
ERR = _Console(stderr=True)
FILE = click.Path(path_type=Path)
WORDS = "onnxprune.words"
Command: TypeAlias = Callable[..., None]


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """One sentence and the right exit code instead of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except OnnxPruneError as error:
            ERR.print(f"onnxprune: {error}", markup=False)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            sys.exit(1)
        except KeyboardInterrupt:
            ERR.print("onnxprune: interrupted; nothing was written.")
            sys.exit(130)
        except PermissionError as error:
            what = f"'{error.filename}': {error.strerror}" if error.filename else str(error)
            ERR.print(
                f"onnxprune: No permission for {what}; nothing was written. Choose a place that you may write to.",
                markup=False,
            )
            sys.exit(2)
        except (OSError, MemoryError) as error:
            ERR.print(f"onnxprune: {type(error).__name__}: {error}; nothing was written.", markup=False)
            sys.exit(2)

    return run


# ---------------------------------------------------------------- options


def options(of: type, command: str, **purposes: str) -> Callable[[Command], Command]:
    """The options of a list (`choose/field.py`) that a command takes, in its order. purposes: other help texts, by name."""
    made = [_made(field, told, purposes) for field, told in fields_of(of, command) if told.cli is not None]

    def decorate(command: Command) -> Command:
        for decorator in reversed(made):
            command = decorator(command)
        return command

    return decorate


def _made(field: Any, told: Field, purposes: dict[str, str]) -> Callable[[Command], Command]:
    given = dict(told.cli or {})
    text, default = purposes.get(field.name, told.help), default_of(field)
    if default == () and not given.get("multiple"):  # several values in one text, of which none is written
        default = None
    reader = given.pop("read", None)
    if given.pop("path", False):
        given["type"] = FILE
    if choices := given.pop("choices", None):
        given["type"] = click.Choice(choices)
    if reader is not None:
        given["callback"] = guarded(lambda context, parameter, value: reader(value))
    if told.by_default and default is None:
        text = f"{text.removesuffix('.')} [default: {told.by_default}]."
    if default is False:
        given["is_flag"] = True
    elif not given.get("multiple") and not given.get("required"):
        given |= {"default": default, "show_default": default not in (None, "")}
    return click.option(flag_of(field), field.name, help=text, **given)


def output_option(what: str) -> Callable[[Command], Command]:
    """Where the model goes."""
    return click.option("-o", "--output", required=True, type=FILE, help=f"Where to write the {what} model.")


report_option = click.option("--report", type=FILE, metavar="FILE.html|.md|.json", help="Write a report.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")


def json_option(what: str = "Print as JSON.") -> Callable[[Command], Command]:
    return click.option("--json", "as_json", is_flag=True, help=what)


def given(*names: str) -> list[str]:
    """Those of the options that the user wrote."""
    context = click.get_current_context()
    return [n for n in names if context.get_parameter_source(n) is not ParameterSource.DEFAULT]


class Remembering(click.Group):
    """A group of commands that remembers the words it was called with."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[WORDS] = (context.info_name or "onnxprune", *args)
        return super().parse_args(context, args)


def words() -> tuple[str, ...]:
    """The words of this command line, the program's name first."""
    found: tuple[str, ...] = click.get_current_context().meta.get(WORDS, ())
    return ("onnxprune", *found[1:]) if found else ()


def check_report(report: Path | None) -> None:
    """Raise `BadInputError` where no renderer has the file's suffix."""
    if report is not None:
        from onnxprune.report.renderer import renderer_for

        renderer_for(report)


# ---------------------------------------------------------------- output


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = ()) -> Table:
    """left: heads of the columns of text; the others are numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for head in heads:
        made.add_column(head, justify="left" if head in left else "right")
    for row in rows:
        made.add_row(*map(plain, row))
    return made


def plain(text: str) -> str:
    """Text that is no markup."""
    return text.replace("[", "\\[")
