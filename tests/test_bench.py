"""What `bench` says of models: percentiles, what each takes alone, settings, and when the machine is too noisy to tell."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import runtime
from onnxprune.cli import main
from onnxprune.model.loaded import Model
from tests.test_runners import DIGITS, Fake, small


def heavy(megabytes: int) -> onnx.ModelProto:
    """A model of so many megabytes of weights."""
    w = numpy_helper.from_array(np.ones((250, 1000 * megabytes), np.float32), "w")
    value = lambda name, *dims: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)  # noqa: E731
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [value("x", 1, 250)], [value("y", 1, 1000 * megabytes)], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def numbers(*values: float) -> Any:
    """A function that gives one after the other, again and again."""
    state = iter(range(1 << 30))
    return lambda: values[next(state) % len(values)]


def test_quantiles_are_left_out_where_there_are_too_few_runs() -> None:
    hundred = list(range(1, 101))
    assert [runtime.quantile(hundred, s) for s in (0.5, 0.9, 0.99)] == [50, 90, 99]
    assert runtime.quantile(hundred[:99], 0.99) is None and runtime.quantile(hundred[:9], 0.9) is None
    assert runtime.quantile(hundred[:10], 0.9) == 9 and runtime.quantile([3.0], 0.5) is None


def test_a_row_says_what_the_runs_were() -> None:
    (row,) = onnxprune.bench(small(), runner=Fake(numbers(*range(1, 101))), runs=100, warmup=0, seconds=600, batch=4)
    assert (row["median_ms"], row["p90_ms"], row["p99_ms"]) == (50, 90, 99) and row["counted_runs"] == 100
    assert (row["min_ms"], row["max_ms"], row["mean_ms"]) == (1, 100, 50.5)
    assert row["inferences_per_second"] == pytest.approx(1000 / 50.5) and row["samples_per_second"] == pytest.approx(
        4000 / 50.5
    )
    assert row["median_low_ms"] < 50 < row["median_high_ms"] and row["verdict"] == "too noisy"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((2.0,), (1.0,), "faster"),
        ((1.0,), (2.0,), "slower"),
        ((1.0, 1.01), (1.01, 1.0, 1.0), "equal"),
        ((1.0, 2.0, 4.0, 8.0), (8.0, 1.0, 1.0), "too noisy"),
    ],
)
def test_what_can_be_said_of_two(before: tuple[float, ...], after: tuple[float, ...], verdict: str) -> None:
    rows = onnxprune.bench([small(), small()], runner=Fake(numbers(*before), numbers(*after)), runs=40, seconds=600)
    assert rows[1]["verdict"] == verdict and rows[0]["speedup"] == 1


def test_the_command_says_that_the_machine_is_too_noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(small(), tmp_path / "m.onnx")
    device = tmp_path / "device.py"
    device.write_text("import os\nn = os.path.getsize(__file__ + 'n') if os.path.exists(__file__ + 'n') else 0\n"
                      "open(__file__ + 'n', 'a').write('x')\nprint(2.0 ** (n % 5))\n")  # fmt: skip
    arguments = ["bench", str(tmp_path / "m.onnx"), "--runner", f"{sys.executable} {device} {{model}}", "--runs", "8"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0 and "the machine is too noisy to tell" in done.stdout, done.output
    device.write_text("print(2)")
    assert "noisy" not in CliRunner().invoke(main, arguments).stdout


def test_no_certainty_about_equal_models_beside_another_process() -> None:
    """An interval of 95 % misses the truth once in twenty times, so three times in a row once in eight thousand."""
    model, feeds = Model(onnx.load(DIGITS)), {"x": np.ones((2, 1, 16, 16), np.float32)}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    told = []
    try:
        for _ in range(3):
            first, second = runtime.latency(runtime.OnnxRuntime(), [model, model], feeds, seconds=2)
            told.append(runtime.speedup(first.rounds, second.rounds).verdict)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert {"equal", "too noisy"} & {*told}, told


def test_memory_and_loading_are_each_models_own(tmp_path: Path) -> None:
    """The small model comes after the large one, whose memory it does not inherit."""
    for name, megabytes in (("large", 64), ("small", 1)):
        onnx.save(heavy(megabytes), tmp_path / f"{name}.onnx")
    large, little = (
        onnxprune.bench([tmp_path / "large.onnx"], runs=3)[0],
        onnxprune.bench(tmp_path / "small.onnx", runs=3)[0],
    )
    assert large["file_bytes"] == (tmp_path / "large.onnx").stat().st_size
    assert large["load_ms"] > 0 and large["first_run_ms"] > 0
    if sys.platform == "linux":
        assert large["memory_mb"] > 60 > 40 > little["memory_mb"] >= 0


def test_a_model_that_cannot_be_run_alone_is_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (row,) = onnxprune.bench(small(), runs=3)
    assert row["memory_mb"] is None and "not measured alone" in row["note"] and row["median_ms"] > 0


def test_every_setting_has_its_rows(tmp_path: Path) -> None:
    onnx.save(small(), tmp_path / "m.onnx")
    path = str(tmp_path / "m.onnx")
    rows = onnxprune.bench([path, path], threads=(1, 2), batch=(1, 8), runs=3, runner=None)
    assert [(r["batch"], r["threads"]) for r in rows] == [(b, t) for b in (1, 8) for t in (1, 2) for _ in range(2)]
    assert all(rows[k]["speedup"] == 1 for k in (0, 2, 4, 6)), "against the first of the same setting"
    done = CliRunner().invoke(main, ["bench", path, "--threads", "1,2", "--runs", "3"])
    assert done.exit_code == 0 and "threads" in done.stdout and "batch" not in done.stdout
    for head in ("median ms", "p90", "p99", "samples/s", "load ms", "first ms", "memory MB", "file MB", "speedup"):
        assert head in done.stdout
    found = json.loads(CliRunner().invoke(main, ["bench", path, "--runs", "3", "--json"]).stdout)
    assert set(found[0]) == set(rows[0]) and found[0]["batch"] == 2 and math.isfinite(found[0]["median_ms"])


def test_a_setting_ends_when_its_time_is_up() -> None:
    (row,) = onnxprune.bench(DIGITS, runs=100_000, seconds=0.5)
    assert 3 <= row["runs"] < 100_000
