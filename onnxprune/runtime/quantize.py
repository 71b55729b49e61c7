"""ONNX Runtime's own quantizer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import ModelProto, numpy_helper

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds
from onnxprune.model.branches import every_graph, opset_of
from onnxprune.model.interface import cut_feeds, interface_of, marked, unmarked
from onnxprune.model.loaded import Model
from onnxprune.model.save import embedded, save_model
from onnxprune.model.tensors import StoredSparseValues
from onnxprune.runtime.refusal import first_line
from onnxprune.runtime.session import VERSION, Session


def quantize(model: Model, samples: Sequence[Feeds], what: str = "the model") -> ModelProto:
    """ONNX Runtime's static quantization: 8-bit weights per output channel, 8-bit activations, calibrated on the samples.

    The result is in QDQ form (QuantizeLinear and DequantizeLinear around float operators), which ONNX Runtime's own
    documentation names as the first choice on CPUs. Constants that a batch normalization could be folded into are folded.
    """
    ports, proto = interface_of(model.proto), unmarked(model.proto)
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = (cut_feeds(ports, s) for s in samples)

        def get_next(self) -> Feeds | None:
            return next(self.left, None)

    opset = opset_of(proto)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as temporary, _quiet():
        plain, ready, done = (f"{temporary}/{name}.onnx" for name in ("plain", "ready", "done"))
        try:
            whole = embedded(model.beside(_dense(model.beside(proto))))
            if whole is None:
                raise BadInputError("it is larger than the 2 GiB that one file can hold.")
            save_model(Model(whole), Path(plain))
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            quantize_static(
                ready,
                done,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=opset >= 13,  # the opset that gave scales an axis
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            result = onnx.load(done)
        except Exception as error:  # the quantizer raises many unrelated types
            raise BadInputError(
                f"ONNX Runtime {VERSION} cannot quantize {what}: {first_line(error)} Leave out --then-quantize."
            ) from None
    _declare(result, proto)
    Session(Model(result), optimized=True, what=f"{what}, quantized")
    return marked(result, ports)


def _dense(model: Model) -> ModelProto:
    """Without sparse initializers, which the quantizer does not look for."""
    copy = ModelProto()
    copy.CopyFrom(model.proto)
    for graph in every_graph(copy.graph):
        for sparse in graph.sparse_initializer:
            stored = StoredSparseValues(sparse, model.folder)
            graph.initializer.append(numpy_helper.from_array(stored.load(), sparse.values.name))
        del graph.sparse_initializer[:]
    return copy


def _declare(model: ModelProto, original: ModelProto) -> None:
    """Inputs and outputs as the original declares them: the quantizer writes what it inferred, for sizes that may differ."""
    for theirs, mine in ((original.graph.input, model.graph.input), (original.graph.output, model.graph.output)):
        known = {v.name: v for v in theirs}
        for value in mine:
            if value.name in known:
                value.CopyFrom(known[value.name])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that the quantizer logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
