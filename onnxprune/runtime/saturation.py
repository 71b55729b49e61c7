"""Do this processor's kernels sum products of 8-bit numbers exactly?

x86-64 without VNNI multiplies unsigned by signed bytes and adds two products in 16 bits, which saturate: 255 x 127 + 255 x 127 gives
32,767. ONNX Runtime's kernels for unsigned weights do not (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

from functools import cache

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.model.loaded import Model
from onnxprune.runtime.session import Session

DEPTH = 64


@cache
def saturates() -> bool:
    """Measured: the largest unsigned activations times the largest signed weights."""
    values = [numpy_helper.from_array(np.full((DEPTH, 4), 127, np.int8), "w")]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, DEPTH])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 4])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "products", [x], [y], values)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found = Session(Model(proto)).run({"x": np.full((1, DEPTH), 255, np.uint8)})[0]
    return bool((found != 255 * 127 * DEPTH).any())
