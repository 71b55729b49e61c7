"""Where models are timed: a list of options (`choose/field.py`) that all commands share that time some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxprune.choose.checks import optional, whole_number
from onnxprune.choose.field import documented, option
from onnxprune.errors import BadInputError, quoted

if TYPE_CHECKING:
    from onnxprune.runtime import Runner

TIMED = ("prune", "explore", "sparsify", "profile", "compare")
ELSEWHERE = ("prune", "explore", "sparsify", "bench", "compare")


def _name(flag: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInputError(f"{flag} must be a name such as 'cpu', not {value!r}.")
    return value


def _runner(flag: str, value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, str) or not all(hasattr(value, part) for part in ("name", "key", "warms_up", "open")):
        raise BadInputError(
            f"Unknown {flag} of type {type(value).__name__}; give openvino, a command such as 'time-it.sh {{model}}', or a Runner."
        )
    return value


def _pairs(flag: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(x, str) and x for kv in value.items() for x in kv):
        raise BadInputError(f'{flag} takes texts by name, such as {{"device_id": "0"}}, not {value!r}.')
    return dict(value)


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """`["device_id=0"]` as the command line has it -> `{"device_id": "0"}`."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise BadInputError(f"--provider-option {quoted(text)} is not of the form name=value.")
        found[name] = value
    return found


@documented
@dataclass(frozen=True)
class Place:
    """Where models are timed, and on how much at once. Correctness is proved on ONNX Runtime's CPU provider wherever that is."""

    provider: str | None = option(
        None,
        optional(_name),
        "ONNX Runtime's execution provider to time on, such as cpu, cuda or openvino: any that the installed one has.",
        cli={"metavar": "NAME"},
        by_default="cpu",
    )
    provider_options: dict[str, str] = option(
        {},
        _pairs,
        "An option of that provider, as its documentation lists them; with --runner openvino, a property of the device.",
        flag="--provider-option",
        cli={"multiple": True, "metavar": "NAME=VALUE", "read": parse_pairs},
        by_default="none",
    )
    runner: str | Runner | None = option(
        None,
        optional(_runner),
        "Time elsewhere than in ONNX Runtime: openvino, or a command with {model} and maybe {inputs} in it that prints milliseconds.",
        cli={"metavar": "openvino|COMMAND"},
        by_default="onnxruntime",
        commands=ELSEWHERE,
    )
    threads: int = option(
        1, whole_number(0), "Threads of a timed model; 0: as the engine likes.", cli={"type": int}, commands=TIMED
    )
    batch: int | None = option(
        None,
        optional(whole_number(1)),
        "Samples of a timed run, where the model's batch is dynamic.",
        cli={"type": int},
        by_default="2, as the model is observed",
        commands=TIMED,
    )
    warmup: int = option(
        3, whole_number(0), "Rounds ahead of those that count; a command warms up by itself.", cli={"type": int}
    )

    def made(self, threads: int | None = None) -> Runner:
        """The runner. threads: instead of those of the options. Raises `BadInputError`."""
        from onnxprune import runtime

        count = self.threads if threads is None else threads
        return runtime.runner_of(self.runner, self.provider, self.provider_options, count)

    @property
    def spec(self) -> dict[str, Any] | None:
        """What another process needs to make the same runner (`runtime/alone.py`); None for an object of the user's, or a command."""
        if self.runner not in (None, "onnxruntime", "openvino"):
            return None
        return {"runner": self.runner, "provider": self.provider, "options": self.provider_options}
