"""ONNX Runtime, and nothing else of the package imports it: sessions, inputs, observation, quantization, latency."""

from onnxprune.runtime.inputs import declared_batch, find_feeds, graph_inputs, rescaled, vary
from onnxprune.runtime.probe import Probe, observe
from onnxprune.runtime.quantize import quantize
from onnxprune.runtime.session import VERSION, Session, folder_of, latency, load_custom_ops

__all__ = [
    "VERSION",
    "Probe",
    "Session",
    "declared_batch",
    "find_feeds",
    "folder_of",
    "graph_inputs",
    "latency",
    "load_custom_ops",
    "observe",
    "quantize",
    "rescaled",
    "vary",
]
