"""onnxprune: structured pruning of ONNX models, from the graph alone and proved in ONNX Runtime."""

from onnxprune.core.budget import Budget
from onnxprune.core.errors import (
    BadInputError,
    NothingPrunableError,
    OnnxPruneError,
    TargetNotReachableError,
    UnsupportedModelError,
    VerificationError,
)
from onnxprune.core.plan import Plan
from onnxprune.core.version import __version__
from onnxprune.pipeline import PruneResult, inspect, prune, verify
from onnxprune.sparse import SparsifyResult, sparsify

__all__ = [
    "BadInputError",
    "Budget",
    "NothingPrunableError",
    "OnnxPruneError",
    "Plan",
    "PruneResult",
    "SparsifyResult",
    "TargetNotReachableError",
    "UnsupportedModelError",
    "VerificationError",
    "__version__",
    "inspect",
    "prune",
    "sparsify",
    "verify",
]
