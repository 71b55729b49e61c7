"""Where time goes: kernels are found in the file, parts add up, and what is said of them does not depend on how long things took."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner

import onnxprune
from onnxprune import BadInputError, Budget
from onnxprune.analyse.observe import analysis_of
from onnxprune.analyse.scope import Scope
from onnxprune.api.profile import reported
from onnxprune.cli import main
from onnxprune.model.load import load
from onnxprune.model.typed_json import typed
from onnxprune.report.profile import ProfileReport
from onnxprune.report.profiling import Layers
from onnxprune.runtime import OnnxRuntime, Recording, block
from onnxprune.runtime.attribution import Kernel, attributed, named, unattributed
from onnxprune.runtime.events import Timed, corrected, read, typical
from tests.oracle import net

DIGITS, DATA = Path("models/digits.onnx"), Path("models/digits_calib.npz")
BLOCK = block()
blocked = pytest.mark.skipif(not BLOCK, reason="ONNX Runtime has no blocked convolutions on this processor")


# ---------------------------------------------------------------- which nodes a kernel computes


def kernels_of(model: onnx.ModelProto) -> list[Kernel]:
    copy, known = named(model)
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = f"{folder}/ran.onnx"
        options.log_severity_level = 4
        ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return attributed(known, onnx.load(options.optimized_model_filepath).graph)


def of(kernels: list[Kernel], op: str) -> set[frozenset[str]]:
    return {frozenset(k.nodes) for k in kernels if k.op == op}


RESIDUAL = """g (float[N,8,8,8] x) => (float[N,16,4,4] y)
    <float[16,8,3,3] w, float[16] s, float[16] m, float[16,16,3,3] v, float[16,16,3,3] u> {
        c1 = Conv<pads=[1,1,1,1]>(x, w)
        n1 = BatchNormalization(c1, s, s, m, s)
        r1 = Relu(n1)
        c2 = Conv<pads=[1,1,1,1]>(r1, v)
        a2 = Add(c2, r1)
        r2 = Relu(a2)
        c3 = Conv<pads=[1,1,1,1]>(r2, u)
        r3 = Relu(c3)
        y = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r3)
    }"""


@blocked
def test_fused_kernels_whose_tensors_have_another_layout() -> None:
    model = net(RESIDUAL, constants={"s": np.ones(16, np.float32), "m": np.zeros(16, np.float32)})
    found = kernels_of(model)
    assert of(found, "Conv") == {frozenset(x) for x in (("c1", "n1", "r1"), ("c2", "a2", "r2"), ("c3", "r3"))}
    assert of(found, "MaxPool") == {frozenset(("y",))}
    assert all(k.nodes[0] in ("c1", "c2", "c3") for k in found if k.op == "Conv")
    put_in = [k for k in found if not k.nodes]
    assert {k.op for k in put_in} <= {"ReorderInput", "ReorderOutput"} and all(k.is_put_in and k.beside for k in put_in)


GELU = """g (float[N,4,16] x) => (float[N,4,16] y) <float[16,32] w, float[32] b, float[32,16] v, float[16] g, float[16] c> {
    h = MatMul(x, w)
    h1 = Add(h, b)
    root = Constant<value_float=1.4142135>()
    one = Constant<value_float=1.0>()
    half = Constant<value_float=0.5>()
    d = Div(h1, root)
    e = Erf(d)
    f = Add(e, one)
    k = Mul(h1, f)
    q = Mul(k, half)
    z = MatMul(q, v)
    s = Add(x, z)
    y = LayerNormalization(s, g, c)
}"""


def test_fusions_of_transformers() -> None:
    found = kernels_of(net(GELU))
    whole = {n for k in found for n in k.nodes}
    assert {"h", "h1", "d", "e", "f", "k", "q", "z", "s", "y"} <= whole and all(
        k.nodes for k in found if not k.is_put_in
    )
    gelu = [k for k in found if "Gelu" in k.op]
    assert len(gelu) == 1 and {"d", "e", "f", "k", "q"} <= set(gelu[0].nodes) and "z" not in gelu[0].nodes
    norm = [k for k in found if k.op.endswith("LayerNormalization")]
    assert len(norm) == 1 and norm[0].nodes[0] == "y"


def test_bodies_of_an_if() -> None:
    model = net("""g (bool c, float[N,8] x) => (float[N,4] y) <float[8,4] w, float[8,4] v> {
        y = If (c) <
            then_branch = t () => (float[N,4] p) { a = MatMul(x, w) p = Relu(a) },
            else_branch = e () => (float[N,4] q) { a = MatMul(x, v) q = Tanh(a) }>
    }""")
    found = kernels_of(model)
    assert [k.nodes for k in found if k.holds] == [("y",)]
    inside = {n for k in found for n in k.nodes} - {"y"}
    assert inside == {"y.then_branch//a", "y.then_branch//p", "y.else_branch//a", "y.else_branch//q"}


def test_quantized_and_half_precision() -> None:
    scale = {"s": np.float32(0.05), "z": np.int8(0)}
    quantized = net(
        """g (float[N,8] x) => (float[N,4] y) <float s, int8 z, int8[8,4] w> {
            a = QuantizeLinear(x, s, z)
            b = DequantizeLinear(a, s, z)
            c = DequantizeLinear(w, s, z)
            d = MatMul(b, c)
            e = QuantizeLinear(d, s, z)
            y = DequantizeLinear(e, s, z)
        }""",
        constants={k: np.asarray(v) for k, v in scale.items()} | {"w": np.ones((8, 4), np.int8)},
    )
    found = kernels_of(quantized)
    product = [k for k in found if "MatMul" in k.op]
    assert len(product) == 1 and product[0].nodes[0] == "d" and all(k.nodes for k in found)
    half = net("g (float16[N,8] x) => (float16[N,4] y) <float16[8,4] w> { h = MatMul(x, w) y = Softmax(h) }")
    found = kernels_of(half)
    assert {n for k in found for n in k.nodes} == {"h", "y"}
    assert all(k.op == "Cast" and k.is_put_in for k in found if not k.nodes)


# ---------------------------------------------------------------- what the profiler wrote


def event(name: str, op: str, start: int, taken: int, index: int = 0, **more: Any) -> dict[str, Any]:
    args = {"op_name": op, "provider": "CPUExecutionProvider", "node_index": str(index), "activation_size": "100"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": taken, "args": args | more}


def run_of(start: int, taken: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": taken, "args": {}}


NOTHING = named(net("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"))[1]


def timed_of(events: list[dict[str, Any]], kernels: list[Kernel], warmup: int = 0) -> tuple[float, list[Timed]]:
    return read(events, kernels, lambda name, op: unattributed(NOTHING, name, op), warmup)


def test_events_of_runs() -> None:
    conv, pool = Kernel("a", "Conv", "", ("c",)), Kernel("", "MaxPool", "", ("p",))
    events = []
    for r, slow in enumerate((90, 0, 0, 50)):  # the first run does not count, the last one was interrupted
        start = 1000 * r
        events += [event("a", "Conv", start + 5, 100 + slow, 7), event("MaxPool_9", "MaxPool", start + 260, 20, 9)]
        events += [run_of(start, 300)]
    outside, found = timed_of(events, [conv, pool], warmup=1)
    assert [(t.kernel.nodes, t.calls, t.bytes) for t in found] == [(("c",), 1, 100), (("p",), 1, 100)]
    assert [t.ms for t in found] == [pytest.approx(0.1), pytest.approx(0.02)]
    assert outside == pytest.approx((130 + 180) / 2 / 1000)
    assert timed_of([], [conv]) == (0.0, [])


def test_a_kernel_that_runs_others_counts_without_them() -> None:
    names = [Kernel("if", "If", "", ("i",), holds=True), Kernel("m", "MatMul", "", ("m",))]
    inside = [event("m", "MatMul", 15 + 30 * k, 20, 1) for k in range(2)]
    events = [run_of(0, 120), event("if", "If", 10, 90, 0), *inside]
    outside, found = timed_of(events, names)
    times = {t.kernel.op: (round(t.ms, 6), t.calls) for t in found}
    assert times == {"If": (0.05, 1), "MatMul": (0.04, 2)} and outside == pytest.approx(0.03)


def test_neighbours_are_not_inside() -> None:
    """A kernel that ends when another one begins, at the clock's resolution."""
    events = [run_of(0, 40), event("a", "Relu", 5, 10, 0), event("b", "Relu", 10, 5, 1)]
    assert [t.ms for t in timed_of(events, [])[1]] == [0.01, 0.005]


def test_threads() -> None:
    def stats(blocks: list[int]) -> dict[str, Any]:
        return {"main_thread": {"block_size": blocks}, "sub_threads": {"1": {"num_run": 1}}}

    kernels = (("a", stats([8])), ("b", stats([])), ("c", ""))
    events = [event(n, "Conv", 10 + 20 * k, 10, k, thread_scheduling_stats=s) for k, (n, s) in enumerate(kernels)]
    assert [t.threaded for t in timed_of([run_of(0, 100), *events], [])[1]] == [True, False, None]


def test_what_the_profiler_takes_goes() -> None:
    kernels = [Timed(Kernel(str(k), "Relu", "", (str(k),)), "", ms, 1, 0) for k, ms in enumerate((0.1, 0.006, 0.004))]
    assert [k.ms for k in corrected(kernels, 1.0, 0.0)] == [0.1, 0.006, 0.004]
    assert [k.ms for k in corrected(kernels, 1.0, 0.003)] == pytest.approx([0.097, 0.003, 0.001])
    assert sum(k.ms for k in corrected(kernels, 0.05, 0.003)) <= 0.05 + 1e-9
    assert typical([5, 1, 1, 3]) == 1 and typical([]) == 0


# ---------------------------------------------------------------- profiles that were made


def layers_of(model: onnx.ModelProto) -> Layers:
    return Layers(analysis_of(load(model), Scope()))


def made(*models: tuple[onnx.ModelProto, dict[str, float]], outside: float = 0.0, **how: Any) -> ProfileReport:
    """A report of models whose kernels took as long as is said. times: by key of the main node, or by operator where it was put in."""
    recordings, layers = [], []
    for model, times in models:
        ms = {k.nodes[0] if k.nodes else k.op: k for k in kernels_of(model)}
        kernels = tuple(
            Timed(k, "CPUExecutionProvider", times.get(n, 0.001), 1, how.get("bytes", 1e3)) for n, k in ms.items()
        )
        recordings.append(Recording(1.0, outside, 1.0, 9, True, kernels, 1e-4))
        layers.append(layers_of(model))
    return reported(["m.onnx", "s.onnx"][: len(models)], recordings, layers, OnnxRuntime(threads=how.get("threads", 2)))


def kinds(report: ProfileReport) -> dict[str, str]:
    """What was found, by kind: where."""
    return {f.kind: f.where for f in report.findings}


def adds_up(report: ProfileReport) -> None:
    for m in filter(None, (report.model, report.pruned)):
        for parts in (m.parts, m.operators, m.groups):
            whole = 1.0 if parts is m.parts else 1.0 - m.outside_ms / m.run_ms
            assert sum(p.share for p in parts) == pytest.approx(whole)
        assert sum(k.ms for k in m.kernels) + m.outside_ms == pytest.approx(m.run_ms)
        assert m.mapped == 1.0
    if report.pruned is not None:
        assert sum(r.before_ms for r in report.compared) == pytest.approx(report.model.run_ms)
        assert sum(r.after_ms for r in report.compared) == pytest.approx(report.pruned.run_ms)


def stack(width: int, groups: int = 1, relu: str = "r = Relu(b)") -> onnx.ModelProto:
    return net(f"""g (float[1,3,8,8] x) => (float[1,8,8,8] y)
        <float[{width},3,3,3] w, float[{width},{width // groups},3,3] v, float[8,{width},1,1] u> {{
            a = Conv<pads=[1,1,1,1]>(x, w)
            b = Conv<pads=[1,1,1,1],group={groups}>(a, v)
            {relu}
            y = Conv(r, u)
        }}""")


@blocked
@pytest.mark.parametrize(("width", "said"), [(64, None), (65, "no multiple of 4"), (68, "padding"), (128, None)])
def test_widths_above_a_step(width: int, said: str | None) -> None:
    report = made((stack(width), {"b": 1.0}))
    own = [f for f in report.findings if f.kind == "width" and f.where == "b"]
    if said is None or (width == 68 and BLOCK == 4):
        assert not own
    else:
        assert said in own[0].text and f"--round-to {BLOCK}" in own[0].advice and "64 or" in own[0].advice
    adds_up(report)


@blocked
@pytest.mark.parametrize(("width", "said"), [(64, False), (65, True)])
def test_widths_of_matrix_products(width: int, said: bool) -> None:
    model = net(
        f"g (float[4,32] x) => (float[4,17] y) <float[32,{width}] w, float[{width},17] v> {{ h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }}"
    )
    found = [f.where for f in made((model, {"h": 1.0, "y": 1.0})).findings if f.kind == "width"]
    assert found == (["h"] if said else [])  # 17 outputs have to stay


@blocked
def test_grouped_convolutions() -> None:
    whole, narrow = stack(8 * BLOCK, 4), stack(4 * BLOCK, 4)
    slow = stack(2 * BLOCK, 4)
    assert "grouped" not in kinds(made((whole, {"b": 1.0})))
    assert "grouped" not in kinds(made((narrow, {"b": 1.0})))
    found = made((whole, {"b": 1.0}), (slow, {"b": 1.0}))
    assert kinds(found)["grouped"] == "b" and "unblocked" not in kinds(found)  # said once
    row = next(r for r in found.compared if r.node == "b")
    assert row.reason == "fell out of the blocked kernels" and row.lost_ms == pytest.approx(1 - 1 / 16, rel=0.01)
    depthwise = stack(BLOCK, BLOCK)
    assert not {"grouped", "width"} & set(kinds(made((depthwise, {"b": 1.0}))))


def test_what_fell_out_of_a_fused_kernel() -> None:
    """The product and the sum are one Gemm, and two kernels where a third node reads the product."""
    fused = net("g (float[4,16] x) => (float[4,8] y) <float[16,8] w, float[8] b> { h = MatMul(x, w) y = Add(h, b) }")
    apart = net(
        """g (float[4,16] x) => (float[4,8] y, float[4,8] h) <float[16,8] w, float[8] b> { h = MatMul(x, w) y = Add(h, b) }"""
    )
    report = made((fused, {"h": 1.0, "y": 1.0}), (apart, {"h": 1.0, "y": 0.5}))
    assert kinds(report)["unfused"] == "y"
    assert [r.reason for r in report.compared if r.node in ("h", "y")] == ["fell out of a fused kernel"]
    adds_up(report)
    assert "unfused" not in kinds(made((fused, {}), (fused, {})))


def test_expected_and_measured() -> None:
    wide, narrow = stack(64), stack(32)
    report = made((wide, {"a": 1.0, "b": 4.0, "y": 1.0}), (narrow, {"a": 0.5, "b": 3.0, "y": 0.5}))
    first = report.compared[0]
    assert (first.node, first.before_ms, first.after_ms) == ("b", 4.0, 3.0)
    assert first.expected_ms == pytest.approx(1.0) and first.lost_ms == pytest.approx(2.0)
    assert kinds(report)["disappointment"] == "b" and report.findings[0].kind == "speedup"
    adds_up(report)


def test_what_stays() -> None:
    """What is pinned cannot be saved, nor the time outside of kernels, nor what was put in."""
    report = made((stack(64), {"a": 1.0, "b": 1.0, "y": 1.0}), outside=3.0)
    model = report.model
    assert model.part("session") == pytest.approx(3.0) and kinds(report)["session"] == ""
    assert 0.99 * 3.0 < model.part("prunable") < model.run_ms - 3.0
    groups = {g.name: g.ms for g in model.groups}
    assert groups["g0"] == pytest.approx(1.5, rel=0.1) and groups["g1"] == pytest.approx(1.5, rel=0.1)  # b is shared
    pinned = net("g (float[4,8] x) => (float[4,8] y) { y = Softmax(x) }")
    report = made((pinned, {"y": 1.0}))
    assert report.model.part("prunable") == 0 and "no-macs" in kinds(report)
    assert report.findings[0].kind == "bound" and report.findings[0].text.startswith("pruning can save 0%")


def test_what_is_not_mapped_is_said() -> None:
    model = stack(16)
    layers = layers_of(model)
    kernels = (
        Timed(Kernel("k", "Secret", "x", ()), "Foo", 3.0, 1, 0),
        Timed(Kernel("b", "Conv", "", ("b",)), "Foo", 1.0, 1, 0),
    )
    report = reported(["m"], [Recording(4.0, 0.0, 1.0, 9, False, kernels, 1e-4)], [layers], OnnxRuntime())
    assert report.model.mapped == pytest.approx(0.25)
    assert {"graph", "off-provider"} <= set(kinds(report)) and any(
        t.name == "not mapped" for t in report.model.operators
    )
    assert next(f for f in report.findings if f.kind == "graph").text.endswith("75% of the run is not mapped")


# ---------------------------------------------------------------- real runs


def test_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))  # not that of the tests beside this one
    small = tmp_path / "small.onnx"
    plan = tmp_path / "plan.json"
    onnxprune.prune(DIGITS, Budget("macs", 0.5), output=small, plan=plan, recover="none", benchmark=False)
    before = set(Path(tempfile.gettempdir()).glob("onnxprune-profile-*"))
    report = onnxprune.profile(DIGITS, small, plan=plan, runs=5, data=DATA)
    assert set(Path(tempfile.gettempdir()).glob("onnxprune-profile-*")) <= before  # nothing is left
    adds_up(report)
    assert report.pruned is not None and 0.4 < report.pruned.macs / report.model.macs <= 0.5
    assert {k.name for k in report.model.kernels if k.macs} == {
        n.name for n in onnx.load(DIGITS).graph.node if n.op_type in ("Conv", "Gemm")
    }
    assert typed(ProfileReport, json.loads(report.to_json()), "it") == report


def test_real_models_of_many_kinds(tmp_path: Path) -> None:
    texts = {
        "if": "g (bool c, float[N,8] x) => (float[N,4] y) <float[8,4] w, float[8,4] v> { y = If (c) <"
        "then_branch = t () => (float[N,4] p) { a = MatMul(x, w) p = Relu(a) },"
        "else_branch = e () => (float[N,4] q) { a = MatMul(x, v) q = Tanh(a) }> }",
        "half": "g (float16[N,8] x) => (float16[N,4] y) <float16[8,4] w> { h = MatMul(x, w) y = Softmax(h) }",
        "nothing": "g (float[2,2] x) => (float[2,2] y) { y = Identity(x) }",
        "integers": "g (int64[N] x) => (int64[N] y) { y = Add(x, x) }",
    }
    for text in texts.values():
        adds_up(onnxprune.profile(net(text), runs=3))
    model = net(texts["half"])
    onnx.save_model(model, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=0)
    adds_up(onnxprune.profile(tmp_path / "apart.onnx", runs=3, threads=2))


def test_command(tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(main, ["profile", *map(str, arguments)])

    shown = run(DIGITS, "--runs", 3, "--top", 2, "--report", tmp_path / "r.md")
    assert shown.exit_code == 0, shown.output
    for part in (
        "where the time goes",
        "by operator",
        "by group",
        "what to do",
        "outside of kernels",
        "pruning can save",
    ):
        assert part in shown.output
    assert "| node | operator |" in (tmp_path / "r.md").read_text()
    given = run(DIGITS, "--runs", 3, "--json")
    assert typed(ProfileReport, json.loads(given.stdout), "it").pruned is None
    for arguments, words in (
        (("none.onnx",), "none.onnx"),
        ((DIGITS, "--plan", "p.json"), "give the pruned model too"),
        ((DIGITS, DIGITS, "--plan", tmp_path / "no.json"), "does not exist"),
        ((DIGITS, "--report", tmp_path / "r.txt"), "--report"),
        ((DIGITS, "--runs", 0), "--runs"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 2 and words in refused.output and "Traceback" not in refused.output


def test_another_plan_or_another_model_is_refused(tmp_path: Path) -> None:
    other = stack(16)
    onnxprune.prune(other, Budget("ratio", 0.5), output=tmp_path / "s.onnx", plan=tmp_path / "p.json", benchmark=False)
    with pytest.raises(BadInputError, match="another model"):
        onnxprune.profile(DIGITS, tmp_path / "s.onnx", plan=tmp_path / "p.json")
    with pytest.raises(BadInputError):
        onnxprune.profile(DIGITS, other)  # other inputs
