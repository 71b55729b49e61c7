"""What a job is, what it gives, and what all jobs of a kind share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from onnxprune.errors import BadInputError


@dataclass(frozen=True)
class Job:
    """key: hash of everything that the result depends on, see `key_of`. argument: what is handed to the work. name: for people."""

    key: str
    argument: Any
    name: str


@dataclass(frozen=True)
class Result:
    """values: what JSON can hold. model: a serialized ONNX model, where the job makes one."""

    values: dict[str, Any]
    model: bytes | None = None


Work = Callable[[Any, Any], Result]
"""A function of a module, of what is shared and of a job's argument. The same arguments give the same result in any process."""


def key_of(*parts: Any) -> str:
    """Hash of what JSON can hold, and of bytes."""
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


class Shared:
    """What all jobs of a kind need: the model, what was measured of it. It travels to a process once, and is kept there by its hash.

    value: whatever can be pickled. prepare: called there first, with its arguments; it must need nothing of `value`.
    """

    def __init__(self, value: Any, prepare: tuple[Callable[..., None], tuple[Any, ...]] | None = None) -> None:
        self.value, self.prepare = value, prepare

    @cached_property
    def packed(self) -> bytes:
        """Raises `BadInputError` where something cannot leave this process."""
        import cloudpickle

        try:
            return bytes(cloudpickle.dumps((self.prepare, cloudpickle.dumps(self.value))))
        except Exception as problem:  # objects of the user's may raise anything
            raise BadInputError(
                f"This cannot be handed to another process: {type(problem).__name__}: {problem}. Give --jobs 1, and no --cluster."
            ) from None

    @cached_property
    def digest(self) -> str:
        """Of `packed`: by it a process finds what it has opened already."""
        return hashlib.sha256(self.packed).hexdigest()


class Place(Protocol):
    """Where jobs run."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int:
        """Jobs that it runs side by side."""
        ...

    def run(self, work: Work, shared: Shared, jobs: Sequence[Job]) -> Iterator[tuple[int, Result]]:
        """Results as they come, with the number of the job. Errors of jobs are raised as they are."""
        ...

    def expect(self, work: Work, count: int) -> None:
        """So many jobs of this work will come: what they need may be started meanwhile. Called once, before `run`."""
        ...

    def close(self) -> None:
        """Let go of files and connections; no jobs are run after it."""
        ...
