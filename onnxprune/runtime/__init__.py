"""ONNX Runtime, and nothing else of the package imports it: sessions, inputs, observation, quantization, latency."""

from onnxprune.runtime.alone import Alone, alone
from onnxprune.runtime.batches import batch_axes, check_batch, samples_in, with_batch
from onnxprune.runtime.engine import OnnxRuntime, providers
from onnxprune.runtime.inputs import declared_batch, find_feeds, graph_inputs, rescaled, vary
from onnxprune.runtime.places import runner_of
from onnxprune.runtime.probe import Probe, types_of
from onnxprune.runtime.profile import Recording, block, copied_per_ms, record
from onnxprune.runtime.quantize import quantize
from onnxprune.runtime.runner import Opened, Runner
from onnxprune.runtime.saturation import saturates
from onnxprune.runtime.session import VERSION, Session, load_custom_ops
from onnxprune.runtime.timing import (
    Comparison,
    Speedup,
    Times,
    checked,
    in_turn,
    interval,
    latency,
    opened,
    opened_all,
    quantile,
    speedup,
)

__all__ = [
    "VERSION",
    "Alone",
    "Comparison",
    "OnnxRuntime",
    "Opened",
    "Probe",
    "Recording",
    "Runner",
    "Session",
    "Speedup",
    "Times",
    "alone",
    "batch_axes",
    "block",
    "check_batch",
    "checked",
    "copied_per_ms",
    "declared_batch",
    "find_feeds",
    "graph_inputs",
    "in_turn",
    "interval",
    "latency",
    "load_custom_ops",
    "opened",
    "opened_all",
    "providers",
    "quantile",
    "quantize",
    "record",
    "rescaled",
    "runner_of",
    "samples_in",
    "saturates",
    "speedup",
    "types_of",
    "vary",
    "with_batch",
]
