"""New values for every weight, as before training: the architecture stays, what it learned goes.

Matrices are drawn from a normal distribution by their fan-in (He et al., 2015), scales become 1, shifts 0, tables small. Exported
graphs often have their BatchNormalization folded away, so the signal's size is then set from data, layer by layer: each
matrix is divided by the standard deviation of what it computes ("All you need is a good init", ICLR 2016), and a
BatchNormalization that is left gets the scale and bias that normalise its input as it is now.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from onnxprune.groups.observation import Array, Feeds
from onnxprune.training.functions.base import Tensor
from onnxprune.training.network import Network, Values
from onnxprune.training.program import Step
from onnxprune.training.weights import TrainedWeight

TABLE = 0.02
SCALES = {"Mul", "Div"}
SHIFTS = {"Add", "Sub", "Sum"}


def initialise(network: Network, feeds: Feeds, seed: int) -> None:
    """Set all parameters, for samples like `feeds`."""
    rng = np.random.default_rng([seed, 3])
    network.load({key: _drawn(w, network.program.constants[key], rng) for key, w in network.weights.items()})
    done: set[str] = set()

    def after(step: Step, values: Values) -> bool:
        with torch.no_grad():
            return _normalised(network, step, values, done)

    with torch.no_grad():
        network.visit(feeds, after)


def _drawn(weight: TrainedWeight, old: Array, rng: np.random.Generator) -> Array:
    step, i = weight.users[0]
    if weight.is_matrix:
        return rng.standard_normal(old.shape) * math.sqrt(2 / max(_fan_in(step, i, old), 1))
    if i == 0 and (
        step.op.startswith("Reduce") or step.op.endswith("Normalization")
    ):  # weights that the graph normalises
        return rng.standard_normal(old.shape) * float(np.std(old))
    if step.op == "PRelu":
        return np.full(old.shape, 0.25)
    is_scale = step.op in SCALES or (step.op.endswith("Normalization") and i == (2 if "Skip" in step.op else 1))
    if is_scale:
        return np.ones(old.shape)
    if step.op.endswith("Normalization") or i >= 2 or (step.op in SHIFTS and sum(n > 1 for n in old.shape) < 2):
        return np.zeros(old.shape)
    return rng.standard_normal(old.shape) * TABLE


def _fan_in(step: Step, i: int, array: Array) -> int:
    if step.op == "ConvTranspose":
        return array.size // int(array.shape[1])
    if "Conv" in step.op:
        return array.size // int(array.shape[0])
    if step.op in ("Gemm", "FusedGemm"):
        return int(array.shape[1] if bool(step.attrs.get("transB", 0)) == (i == 1) else array.shape[0])
    if step.op in ("LSTM", "GRU", "RNN"):
        return 2 * int(array.shape[-1])
    return int(array.shape[-1] if i == 0 or array.ndim < 2 else array.shape[-2])


def _normalised(network: Network, step: Step, values: Values, done: set[str]) -> bool:
    """Adjust the parameters of a step to what it gave; whether it must run again."""
    if step.op == "BatchNormalization":
        return _centred(network, step, values)
    if step.function is None or step.op in ("LSTM", "GRU", "RNN", "Einsum"):
        return False
    own = [
        k for i, k in enumerate(step.inputs) if i in step.function.decays and k in network.parameters and k not in done
    ]
    spread = float(values[step.outputs[0]].std()) if own and values[step.outputs[0]].numel() > 1 else 0.0
    if not own or not math.isfinite(spread) or spread < 1e-8:
        return False
    done.update(own)
    network.parameters[own[0]].div_(spread)
    return True


def _centred(network: Network, step: Step, values: Values) -> bool:
    scale, bias = (network.parameters.get(k) for k in step.inputs[1:3])
    if scale is None or bias is None:
        return False
    x, mean, variance = (values[step.inputs[i]] for i in (0, 3, 4))
    dims = [a for a in range(x.dim()) if a != 1]
    deviation = x.std(dims).clamp_min(1e-5)
    scale.copy_(_root(variance, step) / deviation)
    bias.copy_((mean - x.mean(dims)) / deviation)
    return True


def _root(variance: Tensor, step: Step) -> Tensor:
    return torch.sqrt(variance + step.attrs.get("epsilon", 1e-5))
