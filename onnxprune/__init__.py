"""onnxprune: structured pruning of ONNX models, from the graph alone and proved in ONNX Runtime.

    import onnxprune
    from onnxprune import Budget

    result = onnxprune.prune("model.onnx", Budget("macs", 0.5), data="inputs.npz", output="small.onnx")

`prune` removes channels, heads and neurons; `sparsify` sets weights to zero; `finetune` trains what is left; `prune_during_training`
does both in turns; `explore` prunes to several sizes, `compare` puts models side by side; `inspect` shows what can go, `verify` checks
a result, `bench` times models, `profile` says where their time goes; `data` and `record` make inputs; `run` carries out a config with
gates, and `init` writes one. `Options` lists the keyword arguments of
`prune`, each with its default and meaning; the others have lists of their own. Every error is an `OnnxPruneError`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__

if TYPE_CHECKING:
    from onnxprune.api.bench import bench
    from onnxprune.api.compare import compare
    from onnxprune.api.data import DataReport, data
    from onnxprune.api.explore import ExploreResult, explore
    from onnxprune.api.finetune import FinetuneResult, finetune
    from onnxprune.api.gradual import GradualResult, prune_during_training
    from onnxprune.api.init import init
    from onnxprune.api.inspect import inspect
    from onnxprune.api.profile import profile
    from onnxprune.api.prune import PruneResult, prune
    from onnxprune.api.run import run
    from onnxprune.api.sparsify import SparsifyResult, sparsify
    from onnxprune.api.verify import verify
    from onnxprune.choose.budget import Budget
    from onnxprune.choose.cost import Cost
    from onnxprune.choose.explore_options import ExploreOptions
    from onnxprune.choose.finetune_options import FinetuneOptions, GradualOptions
    from onnxprune.choose.importance import Importance
    from onnxprune.choose.job_options import JobOptions
    from onnxprune.choose.options import Options
    from onnxprune.choose.place import Place
    from onnxprune.choose.sparsify_options import BenchOptions, CompareOptions, SparsifyOptions
    from onnxprune.cut.plan import Plan
    from onnxprune.errors import (
        BadInputError,
        NothingPrunableError,
        OnnxPruneError,
        TargetNotReachableError,
        UnsupportedModelError,
        VerificationError,
    )
    from onnxprune.inputs.options import DataOptions
    from onnxprune.ops import register, unregister
    from onnxprune.ops.base import Rule
    from onnxprune.pipeline.record import RunReport
    from onnxprune.proof.verdict import Verdict
    from onnxprune.report.comparison import Comparison
    from onnxprune.report.explore import ExploreReport
    from onnxprune.report.profile import ProfileReport
    from onnxprune.report.renderer import Renderer
    from onnxprune.report.report import Report
    from onnxprune.report.sparsity import SparsityReport
    from onnxprune.runtime.recorder import record
    from onnxprune.runtime.runner import Runner

PLACES = {  # where each name is; it is imported when it is first used, so that `import onnxprune` is quick
    "onnxprune.api.bench": ("bench",),
    "onnxprune.api.data": ("DataReport", "data"),
    "onnxprune.api.compare": ("compare",),
    "onnxprune.api.explore": ("ExploreResult", "explore"),
    "onnxprune.api.finetune": ("FinetuneResult", "finetune"),
    "onnxprune.api.gradual": ("GradualResult", "prune_during_training"),
    "onnxprune.api.init": ("init",),
    "onnxprune.api.inspect": ("inspect",),
    "onnxprune.api.profile": ("profile",),
    "onnxprune.api.prune": ("PruneResult", "prune"),
    "onnxprune.api.run": ("run",),
    "onnxprune.api.sparsify": ("SparsifyResult", "sparsify"),
    "onnxprune.api.verify": ("verify",),
    "onnxprune.choose.budget": ("Budget",),
    "onnxprune.choose.cost": ("Cost",),
    "onnxprune.choose.explore_options": ("ExploreOptions",),
    "onnxprune.choose.job_options": ("JobOptions",),
    "onnxprune.choose.finetune_options": ("FinetuneOptions", "GradualOptions"),
    "onnxprune.choose.importance": ("Importance",),
    "onnxprune.choose.options": ("Options",),
    "onnxprune.choose.place": ("Place",),
    "onnxprune.choose.sparsify_options": ("BenchOptions", "CompareOptions", "SparsifyOptions"),
    "onnxprune.cut.plan": ("Plan",),
    "onnxprune.inputs.options": ("DataOptions",),
    "onnxprune.errors": (
        "BadInputError",
        "NothingPrunableError",
        "OnnxPruneError",
        "TargetNotReachableError",
        "UnsupportedModelError",
        "VerificationError",
    ),
    "onnxprune.ops": ("register", "unregister"),
    "onnxprune.ops.base": ("Rule",),
    "onnxprune.pipeline.record": ("RunReport",),
    "onnxprune.proof.verdict": ("Verdict",),
    "onnxprune.report.comparison": ("Comparison",),
    "onnxprune.report.explore": ("ExploreReport",),
    "onnxprune.report.profile": ("ProfileReport",),
    "onnxprune.report.renderer": ("Renderer",),
    "onnxprune.report.report": ("Report",),
    "onnxprune.report.sparsity": ("SparsityReport",),
    "onnxprune.runtime.recorder": ("record",),
    "onnxprune.runtime.runner": ("Runner",),
}
_HOME = {name: place for place, names in PLACES.items() for name in names}

__all__ = [
    "BadInputError",
    "BenchOptions",
    "Budget",
    "CompareOptions",
    "Comparison",
    "Cost",
    "DataOptions",
    "DataReport",
    "ExploreOptions",
    "ExploreReport",
    "ExploreResult",
    "FinetuneOptions",
    "FinetuneResult",
    "GradualOptions",
    "GradualResult",
    "Importance",
    "JobOptions",
    "NothingPrunableError",
    "OnnxPruneError",
    "Options",
    "Place",
    "Plan",
    "ProfileReport",
    "PruneResult",
    "Renderer",
    "Report",
    "Rule",
    "RunReport",
    "Runner",
    "SparsifyOptions",
    "SparsifyResult",
    "SparsityReport",
    "TargetNotReachableError",
    "UnsupportedModelError",
    "Verdict",
    "VerificationError",
    "__version__",
    "bench",
    "compare",
    "data",
    "explore",
    "finetune",
    "init",
    "inspect",
    "profile",
    "prune",
    "prune_during_training",
    "record",
    "register",
    "run",
    "sparsify",
    "unregister",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onnxprune' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the module `onnxprune.bench`, the benchmarks of a checkout, leaves the function of that name what it is."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
