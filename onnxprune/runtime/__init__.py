"""ONNX Runtime, and nothing else of the package imports it: sessions, inputs, observation, quantization, latency."""

from onnxprune.runtime.engine import OnnxRuntime
from onnxprune.runtime.inputs import declared_batch, find_feeds, graph_inputs, rescaled, vary
from onnxprune.runtime.probe import Probe, types_of
from onnxprune.runtime.quantize import quantize
from onnxprune.runtime.runner import Opened, Runner
from onnxprune.runtime.saturation import saturates
from onnxprune.runtime.session import VERSION, Session, load_custom_ops
from onnxprune.runtime.timing import Speedup, Times, checked, in_turn, latency, opened, speedup

__all__ = [
    "VERSION",
    "OnnxRuntime",
    "Opened",
    "Probe",
    "Runner",
    "Session",
    "Speedup",
    "Times",
    "checked",
    "declared_batch",
    "find_feeds",
    "graph_inputs",
    "in_turn",
    "latency",
    "load_custom_ops",
    "opened",
    "quantize",
    "rescaled",
    "saturates",
    "speedup",
    "types_of",
    "vary",
]
