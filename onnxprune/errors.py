"""Every way onnxprune can say no, each with the exit code that the command line returns for it.

A message is one clear sentence: what is wrong, where, and what to do next. Anything else that escapes is a bug.
"""


class OnnxPruneError(Exception):
    """Base of all errors that a user can meet; `exit_code` is what the command line returns."""

    exit_code = 1


class BadInputError(OnnxPruneError):
    """The model, a feed, a plan or a path cannot be used as given."""

    exit_code = 2


class UnsupportedModelError(BadInputError):
    """The model may be fine, but it needs something that onnxprune or the installed onnx does not know."""


class TargetNotReachableError(OnnxPruneError):
    """The budget asks for more than can be removed; the message says how far it gets.

    reached: the lowest cost found, in units of the cost, where it is known.
    """

    exit_code = 3
    reached: float | None = None


class VerificationError(OnnxPruneError):
    """The pruned model does not compute what the masked original computes; nothing is written."""

    exit_code = 4


class WorkerLostError(OnnxPruneError):
    """A process or machine that did a part of the work has ended, mostly for want of memory; nothing but a checkpoint is written."""

    exit_code = 2


class RuleError(OnnxPruneError):
    """The rule of an operator failed where going on would give a wrong model; nothing is written."""


class NothingPrunableError(OnnxPruneError):
    """Every axis is pinned; the message names the pins."""

    exit_code = 5


def quoted(name: object) -> str:
    """A name from a file, fit for a message: in quotes, no control characters, not too long."""
    text = name if isinstance(name, str | bytes) else str(name)
    return repr(text if len(text) <= 120 else text[:119])
