"""Before anything is trained: does the interpreter compute what ONNX Runtime computes?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from onnxprune.errors import BadInputError, UnsupportedModelError
from onnxprune.groups.observation import Feeds
from onnxprune.model.branches import showing
from onnxprune.proof.compare import error as differs
from onnxprune.runtime import Session
from onnxprune.training.network import Network

TOLERANCE = 1e-3
HALF = 2e-2


def check(network: Network, feeds: Feeds) -> float:
    """The largest error of an output, relative to its scale. Raises `UnsupportedModelError` with the first node that deviates."""
    model = network.program.model
    reference = Session(model, threads=1)
    wanted = dict(zip(reference.outputs, reference.run(feeds), strict=True))
    with torch.no_grad():
        found = network(feeds)
    worst = max(error(array, found[name]) for name, array in wanted.items())
    if not worst <= tolerance(network):
        raise UnsupportedModelError(_explained(network, feeds, worst))
    return worst


def tolerance(network: Network) -> float:
    half = any(v.dtype.name in ("float16", "bfloat16") for v in network.program.constants.values())
    return HALF if half else TOLERANCE


def error(wanted: Any, found: object) -> float:
    """Largest difference over the largest value; infinity for other shapes, 0 for equal ones (NaN equals NaN)."""
    if not isinstance(wanted, np.ndarray):  # a sequence or map
        return differs([wanted], [found])
    array = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    if array.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind not in "fiub":
        return 0.0
    a, b = wanted.astype(np.float64), array.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    finite = np.isfinite(a)
    if not np.isfinite(b[finite]).all() or not same[~finite].all():
        return float("inf")
    return float(np.abs(a[finite] - b[finite]).max() / max(float(np.abs(a[finite]).max()), 1e-12))


def _explained(network: Network, feeds: Feeds, worst: float) -> str:
    """Which node is the first to deviate, from the values of all of them."""
    text = f"The model cannot be fine-tuned: PyTorch's result deviates from ONNX Runtime's by {worst:.1e} of its scale"
    model = network.program.model
    steps = [s for s in network.program.body.steps if s.node.output]
    keys = [k for s in steps for k in s.outputs if k]
    try:
        session = Session(model.beside(showing(model.proto, keys)), threads=1)
        wanted = dict(zip(session.outputs, session.run(feeds), strict=True))
    except BadInputError:
        return f"{text}; please report this model."
    with torch.no_grad():
        found = network(feeds, keys)
    for step in steps:
        for key in step.outputs:
            if key and isinstance(wanted[key], np.ndarray) and error(wanted[key], found[key]) > tolerance(network):
                return f"{text}, first at {step.op} '{step.node.name or key}' (opset {step.opset}); please report this node."
    return f"{text}; please report this model."
