"""Refusals say the way out, and the way out works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune import BadInputError, Budget, NothingPrunableError
from onnxprune.cli import main
from tests.oracle import net

TRT = ', "TRT" : 1'
MICROSOFT = ', "com.microsoft" : 1'
DETECTOR = """g (float[1,3,16,16] images) => (int32[1,1] count, float[1,10,4] found)
    <float[16,3,3,3] w, float[4,16,1,1] b, float[3,16,1,1] c, int64[3] four, int64[3] three> {
    h = Conv<pads=[1,1,1,1]>(images, w)
    r = Relu(h)
    p = Conv(r, b)
    boxes = Reshape(p, four)
    q = Conv(r, c)
    scores = Reshape(q, three)
    count, found = PLUGIN(boxes, scores)
}"""
SHAPES = {"four": np.array([1, 4, 256]), "three": np.array([1, 3, 256])}
HALF = """g (float[N,8] x) => (float[N,5] y) <float[8,32] w, float[32,5] v> {
    xb = Cast<to=16>(x)
    wb = Cast<to=16>(w)
    a = MatMul(xb, wb)
    y0 = Cast<to=1>(a)
    r = Relu(y0)
    y = MatMul(r, v)
}"""


def said(model: onnx.ModelProto, error: type[onnxprune.OnnxPruneError] = BadInputError) -> str:
    with pytest.raises(error) as caught:
        onnxprune.prune(model, Budget("ratio", 0.5), round_to=1, benchmark=False)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_an_operator_of_another_engine() -> None:
    model = net(DETECTOR.replace("PLUGIN", "TRT.EfficientNMS_TRT"), constants=SHAPES, domains=TRT)
    text = said(model)
    assert "EfficientNMS_TRT of domain TRT" in text and "--custom-ops LIBRARY" in text
    assert "cut the model at its inputs ('boxes', 'scores')" in text and "put the rest back" in text


def test_an_operator_of_another_engine_in_the_standards_domain() -> None:
    text = said(net(DETECTOR.replace("PLUGIN", "SomeoneElsesNMS"), constants=SHAPES))
    assert "SomeoneElsesNMS" in text and "('boxes', 'scores')" in text and "--custom-ops" not in text


def test_the_way_around_a_foreign_operator(tmp_path: Path) -> None:
    model = net(DETECTOR.replace("PLUGIN", "TRT.EfficientNMS_TRT"), constants=SHAPES, domains=TRT)
    onnx.save(model, tmp_path / "m.onnx")
    onnx.utils.extract_model(str(tmp_path / "m.onnx"), str(tmp_path / "part.onnx"), ["images"], ["boxes", "scores"])
    part = onnxprune.prune(tmp_path / "part.onnx", Budget("ratio", 0.5), round_to=1, benchmark=False)
    assert [g.removed for g in part.plan.groups if g.removed] == [8]
    whole = onnx.ModelProto()
    whole.CopyFrom(part.model)
    whole.graph.node.append(model.graph.node[-1])
    del whole.graph.output[:]
    whole.graph.output.extend(model.graph.output)
    onnx.checker.check_model(whole)


def test_types_that_the_processor_does_not_compute_with() -> None:
    text = said(net(HALF))
    assert "node '→a' (MatMul) on the CPU for bfloat16" in text and "cast the model to float32" in text
    double = net("g (double[N,3,8,8] x) => (double[N,5,6,6] y) <double[5,3,3,3] w> { y = Conv(x, w) }")
    assert "for double; cast the model to float32" in said(double)
    early = net("g (bfloat16[N,8] x) => (bfloat16[N,5] y) <bfloat16[8,5] w> { y = MatMul(x, w) }", opset=12)
    assert "takes no bfloat16" in said(early) and "cast the model to float32" in said(early)


def test_a_file_compiled_for_one_device() -> None:
    text = said(
        net(
            """g (float[N,8] x) => (float[N,5] y) {
                a = Relu(x)
                y = com.microsoft.EPContext<embed_mode=0,ep_cache_context="engine.bin">(a)
            }""",
            domains=MICROSOFT,
        )
    )
    assert "'→y' (EPContext)" in text and "prune the file that it was made from" in text


def test_a_file_optimized_for_one_machine(tmp_path: Path) -> None:
    model = net(
        """g (float[N,3,16,16] x) => (float[N,5] y) <float[32,3,3,3] w, float[32,32,1,1] v, float[32,5] s> {
            a = Conv<pads=[1,1,1,1]>(x, w)
            r = Relu(a)
            b = Conv(r, v)
            k = Relu(b)
            p = GlobalAveragePool(k)
            f = Flatten(p)
            y = MatMul(f, s)
        }"""
    )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "fast.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fast = onnx.load(tmp_path / "fast.onnx")
    if not any(n.domain == "com.microsoft.nchwc" for n in fast.graph.node):
        pytest.skip("this processor has no such layout")
    text = said(fast, NothingPrunableError)
    assert "one kind of processor" in text and "prune the file that this one was made from" in text


@pytest.mark.parametrize(
    ("declared", "shape", "way"),
    [
        ("3,16,16", (32, 3, 16, 16), "a folder with one file per input"),
        ("T,16", (32, 7, 16), "a folder with one file per input"),
        ("N,3,16,16", (3, 16, 16), "put a batch axis first: [1, 3, 16, 16]"),
        ("N,3,16,16", (2, 4, 16, 16), "the model wants ['?', 3, 16, 16]; axis 1 must have size 3, not 4."),
    ],
)
def test_data_with_an_axis_too_many(declared: str, shape: tuple[int, ...], way: str, tmp_path: Path) -> None:
    model = net(f"g (float[{declared}] x) => (float[{declared}] y) {{ y = Relu(x) }}")
    np.savez(tmp_path / "x.npz", x=np.zeros(shape, np.float32))
    onnx.save(model, tmp_path / "m.onnx")
    arguments = ["prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--data", "x.npz"]
    result = CliRunner().invoke(main, [str(tmp_path / a) if a.endswith((".onnx", ".npz")) else a for a in arguments])
    assert result.exit_code == 2 and way in result.stderr and not (tmp_path / "s.onnx").exists()


def reasons(text: str, **constants: np.ndarray) -> list[str]:
    found = onnxprune.inspect(net(text, constants=constants))["groups"]
    return [p["reason"] for g in found for p in g["pins"]]


def test_what_hangs_together_is_named() -> None:
    found = reasons(
        """g (float[N,8] x) => (float[N,5] y) <float[8,24] w, float[24,5] v, int64[3] a, int64[3] b, int64[2] back> {
            h = MatMul(x, w)
            three = Reshape(h, a)
            p = Softmax(three)
            four = Reshape(h, b)
            q = Softmax(four)
            pr = Reshape(p, back)
            qr = Reshape(q, back)
            z = Add(pr, qr)
            y = MatMul(z, v)
        }""",
        a=np.array([0, 3, 8]),
        b=np.array([0, 4, 6]),
        back=np.array([0, 24]),
    )
    assert "all positions of an axis of MatMul 'h' hang together" in found


def test_rows_that_do_not_line_up_are_named() -> None:
    found = reasons(
        """g (float[N,24,4,4] x) => (float[N,5,4,4] y)
            <float[24,24,1,1] w, float[24,8,1,1] three, float[24,6,1,1] four, float[5,24,1,1] v> {
            h = Conv(x, w)
            a = Conv<group=3>(h, three)
            b = Conv<group=4>(a, four)
            c = Add(b, h)
            y = Conv(c, v)
        }"""
    )
    assert "the rows of Conv 'h' do not line up with those of input 1 of Conv 'b'" in found
    assert all("'" in reason for reason in found), "every reason names a node or a tensor"
