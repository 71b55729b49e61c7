"""onnxprune: structured pruning of ONNX models, from the graph alone and proved in ONNX Runtime."""

from onnxprune.api.inspect import inspect
from onnxprune.api.prune import PruneResult, prune
from onnxprune.api.sparsify import SparsifyResult, sparsify
from onnxprune.api.verify import verify
from onnxprune.choose.budget import Budget
from onnxprune.cut.plan import Plan
from onnxprune.errors import (
    BadInputError,
    NothingPrunableError,
    OnnxPruneError,
    TargetNotReachableError,
    UnsupportedModelError,
    VerificationError,
)
from onnxprune.ops import register, unregister
from onnxprune.ops.base import Rule
from onnxprune.version import __version__

__all__ = [
    "BadInputError",
    "Budget",
    "NothingPrunableError",
    "OnnxPruneError",
    "Plan",
    "PruneResult",
    "Rule",
    "SparsifyResult",
    "TargetNotReachableError",
    "UnsupportedModelError",
    "VerificationError",
    "__version__",
    "inspect",
    "prune",
    "register",
    "sparsify",
    "unregister",
    "verify",
]
