"""ONNX Runtime, and nothing else of the package imports it: sessions, inputs, observation, quantization, latency."""

from onnxprune.runtime.inputs import declared_batch, find_feeds, graph_inputs, rescaled, vary
from onnxprune.runtime.probe import Probe, types_of
from onnxprune.runtime.quantize import quantize
from onnxprune.runtime.saturation import saturates
from onnxprune.runtime.session import VERSION, Session, load_custom_ops
from onnxprune.runtime.timing import Speedup, latency, speedup

__all__ = [
    "VERSION",
    "Probe",
    "Session",
    "Speedup",
    "declared_batch",
    "find_feeds",
    "graph_inputs",
    "latency",
    "load_custom_ops",
    "quantize",
    "rescaled",
    "saturates",
    "speedup",
    "types_of",
    "vary",
]
