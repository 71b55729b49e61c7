"""Where models are timed: providers of ONNX Runtime, OpenVINO, programs, objects of one's own; and what is said where that fails."""

from __future__ import annotations

import importlib.util
import os
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx.reference import ReferenceEvaluator

import onnxprune
from onnxprune import BadInputError, Budget, VerificationError, runtime
from onnxprune.cli import main
from onnxprune.model.loaded import Model
from onnxprune.proof.elsewhere import CLOSE, Stopwatch
from onnxprune.runtime import runner as runner_module
from onnxprune.runtime.command import Command, times_of, with_sizes
from onnxprune.runtime.runner import Calls
from tests.devices.blocks import milliseconds
from tests.helpers import documented
from tests.oracle import net

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "models" / "digits.onnx"
DATA = ROOT / "models" / "digits_calib.npz"
PYTHON = shlex.quote(sys.executable)
BLOCKS = f"{PYTHON} {shlex.quote(str(ROOT / 'tests' / 'devices' / 'blocks.py'))} {{model}}"
TIMED = {"x": np.ones((2, 4), np.float32)}
openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the extra openvino is missing")


def small(width: int = 8, text: str = "N") -> onnx.ModelProto:
    return net(f"""g (float[{text},4] x) => (float[{text},3] y) <float[4,{width}] w, float[{width},3] v> {{
        a = MatMul(x, w)
        r = Relu(a)
        y = MatMul(r, v)
    }}""")


def script(folder: Path, text: str) -> str:
    """A command that runs this Python with the model as its argument."""
    path = folder / "device.py"
    path.write_text(f"import sys\n{text}\n")
    return f"{PYTHON} {shlex.quote(str(path))} {{model}}"


def refusal(call: Callable[[], Any], kind: type[Exception] = BadInputError) -> str:
    with pytest.raises(kind) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".")
    return said


# ---------------------------------------------------------------- ONNX Runtime


def test_providers_by_short_and_long_names() -> None:
    assert runtime.OnnxRuntime("CPU").name == runtime.OnnxRuntime("CPUExecutionProvider").name
    assert "cpu, 1 thread" in runtime.OnnxRuntime().name and "a thread per core" in runtime.OnnxRuntime(threads=0).name


def test_a_provider_that_is_not_installed_is_refused_with_those_that_are() -> None:
    said = refusal(lambda: onnxprune.bench("no.onnx", provider="dreams"))
    assert "has no provider 'dreams'" in said and "cpu" in said.split("it has", 1)[1]


def test_options_of_the_cpu_are_refused_as_it_has_none() -> None:
    assert "has no options" in refusal(lambda: onnxprune.bench("no.onnx", provider_options={"a": "b"}))


def test_another_provider_is_timed_and_compared_with_the_cpu() -> None:
    """Azure's runs nothing here, so that all nodes go to the CPU and the outputs are the same."""
    if "azure" not in runtime.providers():
        pytest.skip("this ONNX Runtime has the CPU provider alone")
    (row,) = onnxprune.bench(small(), provider="azure", runs=3)
    assert "azure" in row["runner"] and row["difference"] == 0
    assert onnxprune.bench(small(), runs=3)[0]["difference"] is None


def test_what_a_time_depends_on_is_in_the_key(tmp_path: Path) -> None:
    keys = [runtime.OnnxRuntime().key, runtime.OnnxRuntime(threads=2).key]
    (tmp_path / "a").mkdir()
    keys += [runtime.OnnxRuntime("azure").key] if "azure" in runtime.providers() else []
    command = script(tmp_path / "a", "print(1)")
    keys.append(Command(command).key)
    script(tmp_path / "a", "print(2)")
    keys.append(Command(command).key)
    assert all(isinstance(v, str) for key in keys for v in key.values())
    assert len({tuple(sorted(key.items())) for key in keys}) == len(keys)


def test_what_a_provider_says_is_quoted_without_its_sources() -> None:
    from onnxprune.runtime.engine import _without_place

    said = "/a/b_state.cc:1053 std::shared_ptr<X> a::b::Create(const c::Options&, const d::Map&) Invalid OpenVINO EP option: foo"
    assert str(_without_place(RuntimeError(said))) == "Invalid OpenVINO EP option: foo"
    assert str(_without_place(RuntimeError("No (such) device"))) == "No (such) device"


# ---------------------------------------------------------------- an object


class Fake:
    """A runner that gives numbers. made: milliseconds of a call, by model in the order in which they are opened. seen: what was called.

    outputs: what becomes of those of the last model; None where there are none.
    """

    name, warms_up = "fake", False
    key = {"engine": "fake"}

    def __init__(self, *made: Callable[[], float], outputs: Callable[[list[Any]], list[Any]] | None = None) -> None:
        self.made, self.outputs, self.seen = made, outputs, []

    def open(self, model: Model, feeds: dict[str, Any], what: str) -> Any:
        number, fake = sum(s == "open" for s, *_ in self.seen), self
        self.seen.append(("open", number))

        class Opened:
            def time(self, runs: int) -> list[float]:
                fake.seen.append(("time", number, runs))
                return [fake.made[number]()]

            def run(self) -> list[Any] | None:
                if fake.outputs is None:
                    return None
                found = runtime.Session(model).run(feeds)
                return fake.outputs(found) if number == len(fake.made) - 1 else found

            def close(self) -> None:
                fake.seen.append(("close", number))

        return Opened()


def test_the_documented_runner_is_one() -> None:
    reference = documented(runner_module, "Reference", onnx=onnx, ReferenceEvaluator=ReferenceEvaluator, Calls=Calls)()
    assert isinstance(reference, onnxprune.Runner)
    before, after = onnxprune.bench([small(64), small(8)], runner=reference, runs=3)
    assert before["runner"] == "reference" and before["difference"] < 1e-5 and after["median_ms"] > 0
    assert before["load_ms"] > 0 and before["first_run_ms"] > 0 and before["memory_mb"] is None


def test_rounds_turn_and_warm_up_rounds_do_not_count() -> None:
    fake = Fake(lambda: 2.0, lambda: 1.0)
    models = [Model(small()), Model(small())]
    before, after = runtime.latency(fake, models, TIMED, repeats=3, warmup=2)
    assert (before.rounds, after.rounds) == ((2.0,) * 3, (1.0,) * 3)
    order = [number for kind, number, *_ in fake.seen if kind == "time"]
    assert order == [1, 0, 0, 1] * 2 + [1, 0] and [s for s in fake.seen if s[0] == "close"] == [
        ("close", 1),
        ("close", 0),
    ]


def test_short_runs_are_made_in_blocks_and_what_warms_up_itself_gets_no_warm_up() -> None:
    fake = Fake(lambda: 0.1)
    runtime.latency(fake, [Model(small())], TIMED, repeats=3, warmup=1)
    assert [s[2] for s in fake.seen if s[0] == "time"] == [1, 10, 10, 10], "a millisecond at least"
    fake = Fake(lambda: 0.1)
    fake.warms_up = True
    runtime.latency(fake, [Model(small())], TIMED, repeats=3, warmup=1)
    assert len([s for s in fake.seen if s[0] == "time"]) == 3


def test_models_are_closed_where_one_of_them_fails() -> None:
    fake = Fake(lambda: 1.0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runtime.latency(fake, [Model(small()), Model(small())], TIMED)
    assert [s for s in fake.seen if s[0] == "close"] == [("close", 1), ("close", 0)]


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_times_are_above_zero(wrong: float) -> None:
    assert "above zero" in refusal(lambda: onnxprune.bench(small(), runner=Fake(lambda: wrong), runs=3))


def test_outputs_elsewhere_are_compared_and_wrong_ones_fail(tmp_path: Path) -> None:
    given: dict[str, Any] = {"round_to": 1, "output": tmp_path / "s.onnx"}
    right = Fake(lambda: 2.0, lambda: 2.0, lambda: 1.0, outputs=lambda found: found)
    report = onnxprune.prune(small(), Budget("ratio", 0.5), runner=right, **given).report
    assert report.latency_ms is not None and report.latency_ms.runner == "fake"
    (tmp_path / "s.onnx").unlink()
    wrong = Fake(lambda: 2.0, lambda: 2.0, lambda: 1.0, outputs=lambda found: [x + 2 * np.abs(x).max() for x in found])
    said = refusal(lambda: onnxprune.prune(small(), Budget("ratio", 0.5), runner=wrong, **given), VerificationError)
    assert "computes other outputs" in said and not (tmp_path / "s.onnx").exists()


def test_an_engine_that_is_as_far_off_for_the_original_is_no_failure_of_the_removal() -> None:
    from onnxprune.proof.elsewhere import check_close

    check_close(Fake(), 0.0, CLOSE)
    check_close(Fake(), CLOSE, 2 * CLOSE)
    for before, after in ((0.0, 1.01 * CLOSE), (CLOSE, 2.01 * CLOSE), (0.0, float("nan")), (0.0, float("inf"))):
        with pytest.raises(VerificationError):
            check_close(Fake(), before, after)


# ---------------------------------------------------------------- a program


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("1.5", [1.5]),
        ("warming up\n1.5\n", [1.5]),
        ("1\n2\n", [2.0]),
        ("3.5 ms\ndone", [3.5]),
        ("1.0 2.0, 3.0;4", [1.0, 2.0, 3.0, 4.0]),
        ("time: 2.5 ms", [2.5]),
        (
            "[ INFO ]    Median:        417.48 us\n[ INFO ]    Max:           5694.01 us\n[ INFO ] Throughput: 3952 FPS",
            [0.41748],
        ),
        ("latency = 1.25e-1 s", [125.0]),
        ("GPU Compute Time: min = 1 ms, max = 3 ms, mean = 2 ms, median = 1.9 ms", [1.9]),
        ("mean: 7 ms\nmedian: 5 ms\nmax: 9 ms", [5.0]),
        ("-1", [-1.0]),
        ("errors: 0", None),
        ("version 1.5", None),
        ("1.5 GB", None),
        ("nan", None),
        ("", None),
    ],
)
def test_which_line_is_the_time(text: str, times: list[float] | None) -> None:
    assert times_of(text) == (None if times is None else pytest.approx(times))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "sys.exit('no such board')",
            "ended with exit code 1 on model 1; its standard error ends with 'no such board'.",
        ),
        ("print('hello'); print('careful', file=sys.stderr)", "printed no line that is a number of milliseconds"),
        ("print(-3)", "printed -3 as milliseconds, which must be above zero"),
        ("print(0)", "printed 0 as milliseconds"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "ended with signal 9 on model 1; it printed nothing.",
        ),
    ],
)
def test_how_a_program_fails(text: str, said: str, tmp_path: Path) -> None:
    message = refusal(lambda: onnxprune.bench(small(), runner=script(tmp_path, text), runs=3))
    assert said in message and "--runner" in message
    if "careful" in text:
        assert "its standard error ends with 'careful'" in message


def test_commands_that_cannot_be_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    def refused(command: str, **given: Any) -> str:
        return refusal(lambda: onnxprune.bench("no.onnx", runner=command, **given))

    assert "the program 'no-such-program' is not there" in refused("no-such-program {model}")
    assert "write {model} there" in refused("echo 3 {inputs}")
    assert "cannot be split into words" in refused("echo '{model}")
    assert "Unknown --runner 'tensorflow'; choose onnxruntime or openvino" in refused("tensorflow")
    assert "write {threads} there" in refused("echo {model}", threads=(1, 2))
    assert "leave it out" in refused("echo {model}", provider="cpu")
    assert "leave it out" in refused("echo {model}", provider_options={"a": "b"})
    plain = tmp_path / "no-program"
    plain.write_text("")
    assert "executable" in refused(f"{plain} {{model}}")


def test_what_a_program_is_given(tmp_path: Path) -> None:
    """The model with its sizes and its external data, the inputs, the threads; all of it goes again."""
    out = tmp_path / "seen"
    text = f"""
import numpy as np, onnx
model, inputs = onnx.load(sys.argv[1]), np.load(sys.argv[2])
dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
weights = sorted(t.dims[0] for t in model.graph.initializer if t.raw_data)
with open({str(out)!r}, "a") as file:
    print(dims, inputs["x"].shape, inputs["x"].sum(), weights, sys.argv[3], *sys.argv[1:3], sep="|", file=file)
print(1.0)"""
    onnx.save(small(512), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    command = script(tmp_path, text) + " {inputs} --threads={threads}"
    rows = onnxprune.bench(tmp_path / "m.onnx", runner=command, runs=3, batch=6, threads=2)
    assert rows[0]["median_ms"] == 1 and rows[0]["runs"] == 3 and rows[0]["batch"] == 6
    assert rows[0]["samples_per_second"] == 6000 and rows[0]["load_ms"] is None and rows[0]["memory_mb"] is None
    dims, shape, total, weights, threads, model, inputs = out.read_text().splitlines()[0].split("|")
    assert (dims, shape, weights, threads) == ("[6, 4]", "(6, 4)", "[4, 512]", "--threads=2") and float(total)
    assert not Path(model).parent.exists() and not Path(inputs).exists()


def test_sizes_are_filled_in_only_where_they_are_open() -> None:
    fixed, open_ = small(text="2"), small()
    assert with_sizes(fixed, TIMED) is fixed
    filled = with_sizes(open_, TIMED)
    assert [d.dim_value for d in filled.graph.input[0].type.tensor_type.shape.dim] == [2, 4]
    assert open_.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N", "the model itself is left alone"


@pytest.mark.skipif(os.name != "posix", reason="groups of processes")
def test_a_program_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    text = f"""
import subprocess
child = subprocess.Popen(["sleep", "60"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
print("still waiting", file=sys.stderr, flush=True)
child.wait()"""
    opened = Command(script(tmp_path, text), timeout=5).open(Model(small()), TIMED, "the model")
    start = time.perf_counter()
    said = refusal(lambda: opened.time(1))
    opened.close()
    assert "took longer than 5 seconds on the model; its standard error ends with 'still waiting'" in said
    assert time.perf_counter() - start < 50
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"):
            return
        time.sleep(0.1)
    raise AssertionError("the program's own process is still there")


def test_a_program_is_tried_before_the_work_begins(tmp_path: Path) -> None:
    said: list[str] = []
    refusal(
        lambda: onnxprune.prune(
            DIGITS, Budget("macs", 0.5), data=DATA, runner=script(tmp_path, "sys.exit(3)"), progress=said.append
        )
    )
    assert {text.split()[0] for text in said} == {"load", "analyse"}


def test_a_device_whose_kernels_work_in_blocks() -> None:
    """Another device, other steps: 33 channels take what 64 do, and ONNX Runtime's times have no say."""
    models = [small(w) for w in (64, 33, 32)]
    rows = onnxprune.bench(models, runner=BLOCKS, runs=3)
    expected = [milliseconds_of(m) for m in models]
    assert [r["median_ms"] for r in rows] == pytest.approx(expected, rel=1e-3)
    assert rows[0]["median_ms"] == rows[1]["median_ms"] > rows[2]["median_ms"]
    assert [r["verdict"] for r in rows] == ["equal", "equal", "faster"]


def milliseconds_of(model: onnx.ModelProto) -> float:
    import tempfile

    feeds = {"x": np.zeros((2, 4), np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(with_sizes(model, feeds), f"{folder}/m.onnx")
        return milliseconds(f"{folder}/m.onnx")


@pytest.mark.slow
def test_prune_times_on_the_device_that_is_given(tmp_path: Path) -> None:
    result = onnxprune.prune(
        DIGITS, Budget("macs", 0.5), data=DATA, runner=BLOCKS, round_to=1, recover="none", importance="l2"
    )
    found = result.report.latency_ms
    assert found is not None and "blocks.py" in found.runner and found.differences is None
    assert found.spread[0][0] == found.spread[0][1], "it takes the same time, always"
    assert found.before >= found.after


@pytest.mark.skipif(os.name != "posix", reason="a script for sh")
def test_the_scripts_for_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an ssh and an scp that stay on this machine; the board's folder has gone afterwards."""
    made = {
        "ssh": 'shift\nif [ "$*" = "mktemp -d" ]; then mktemp -d "$BOARD/run.XXXX"; else cd "$BOARD" && exec sh -c "$*"; fi',
        "scp": 'shift\nfor last; do :; done\nwhile [ $# -gt 1 ]; do cp "$1" "${last#*:}"; shift; done',
        "python3": f'exec {PYTHON} "$@"',
    }
    for name, text in made.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    board = tmp_path / "board"
    board.mkdir()
    (board / "time_model.py").write_text((ROOT / "tests" / "devices" / "time_model.py").read_text())
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("BOARD", str(board))
    onnx.save(small(512), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    command = f"sh {ROOT / 'tests' / 'devices' / 'time-on-board.sh'} me@board {{model}} {{inputs}}"
    (row,) = onnxprune.bench(tmp_path / "m.onnx", runner=command, runs=3)
    assert row["counted_runs"] == 60 and 0 < row["min_ms"] <= row["median_ms"]
    assert [p.name for p in board.iterdir()] == ["time_model.py"]


# ---------------------------------------------------------------- OpenVINO


@openvino
def test_openvino_is_a_second_engine(tmp_path: Path) -> None:
    output = tmp_path / "s.onnx"
    report = onnxprune.prune(DIGITS, Budget("macs", 0.5), data=DATA, runner="openvino", output=output).report
    assert report.latency_ms is not None and report.latency_ms.runner.startswith("OpenVINO")
    assert report.latency_ms.differences is not None and max(report.latency_ms.differences) <= CLOSE
    given: dict[str, Any] = {"runner": "openvino", "provider_options": {"INFERENCE_PRECISION_HINT": "f32"}}
    rows = onnxprune.bench([DIGITS, output], runs=5, batch=(1, 4), **given)
    assert len(rows) == 4 and all(r["difference"] < 1e-4 and r["load_ms"] > 0 and r["memory_mb"] > 0 for r in rows)


@openvino
def test_openvino_reads_external_data_and_says_what_it_does_not_take(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small(512), path, save_as_external_data=True, size_threshold=0)
    assert onnxprune.bench(path, runner="openvino", runs=3)[0]["difference"] < 1e-2
    assert "OpenVINO" in refusal(
        lambda: onnxprune.bench(path, runner="openvino", provider_options={"FOO": "1"}, runs=3)
    )
    assert "OpenVINO" in refusal(
        lambda: onnxprune.bench(path, runner="openvino", provider_options={"DEVICE": "XPU"}, runs=3)
    )


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install 'onnxprune[openvino]'" in refusal(lambda: onnxprune.bench("no.onnx", runner="openvino"))


# ---------------------------------------------------------------- how much at once


def test_the_batch_is_the_axis_that_is_called_so_or_the_first() -> None:
    named = net("""g (float[T,batch,4] x, float[batch,2] z) => (float[T,batch,4] y) {
        y = Relu(x)
    }""")
    feeds = {"x": np.arange(24, dtype=np.float32).reshape(3, 2, 4), "z": np.zeros((2, 2), np.float32)}
    found = runtime.with_batch(named, feeds, 5)
    assert {k: v.shape for k, v in found.items()} == {"x": (3, 5, 4), "z": (5, 2)}
    np.testing.assert_array_equal(found["x"], feeds["x"][:, [0, 1, 0, 1, 0]])
    first = net("g (float[N,4] x, float[3,N] z, float[2] s) => (float[N,4] y) { y = Relu(x) }")
    feeds = {"x": np.zeros((2, 4)), "z": np.zeros((3, 2)), "s": np.zeros(2)}
    assert {k: v.shape for k, v in runtime.with_batch(first, feeds, 1).items()} == {"x": (1, 4), "z": (3, 1), "s": (2,)}
    assert runtime.samples_in(first, feeds) == 2
    unnamed = small(text="?")
    assert runtime.with_batch(unnamed, TIMED, 7)["x"].shape == (7, 4) and runtime.samples_in(unnamed, TIMED) == 2
    assert runtime.samples_in(small(text="2"), TIMED) == 2
    assert runtime.with_batch(unnamed, TIMED, None) is TIMED


def test_a_fixed_batch_is_refused_unless_it_is_the_one() -> None:
    fixed = small(text="2")
    assert runtime.with_batch(fixed, TIMED, 2) == TIMED
    said = refusal(lambda: onnxprune.bench(fixed, batch=8))
    assert "--batch 8: the first dimension of input 'x' is fixed at 2" in said
    seen: list[str] = []
    refusal(lambda: onnxprune.prune(fixed, Budget("ratio", 0.5), batch=8, progress=seen.append))
    assert "score" not in {text.split()[0] for text in seen}


def test_a_stopwatch_times_the_batch_that_it_is_told() -> None:
    fake = Fake(lambda: 2.0, lambda: 1.0)
    shapes: list[Any] = []
    original = fake.open
    fake.open = lambda model, feeds, what: (shapes.append(feeds["x"].shape), original(model, feeds, what))[1]  # type: ignore[method-assign]
    model = Model(small())
    found = Stopwatch(fake, batch=5).timed((model, model), TIMED)
    assert shapes == [(5, 4)] * 2 and [t.median for t in found.times] == [2.0, 1.0]


@pytest.mark.slow
def test_the_command_line_says_where(tmp_path: Path) -> None:
    onnx.save(small(), tmp_path / "m.onnx")
    call = CliRunner().invoke
    done = call(main, ["bench", str(tmp_path / "m.onnx"), "--runner", BLOCKS, "--runs", "3", "--batch", "1,3"])
    assert done.exit_code == 0 and "blocks.py" in done.stdout and "batch" in done.stdout, done.output
    done = call(main, ["bench", str(tmp_path / "m.onnx"), "--provider-option", "oops"])
    assert done.exit_code == 2 and "'oops' is not of the form name=value" in done.stderr
    done = call(main, ["bench", str(tmp_path / "m.onnx"), "--batch", "one"])
    assert done.exit_code == 2 and "--batch takes whole numbers such as 1,2,4" in done.stderr
    arguments = ["prune", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "s.onnx"), "--macs", "0.5"]
    done = call(main, [*arguments, "--during-training", "--data", str(DATA), "--threads", "2"])
    assert done.exit_code == 2 and "leave out --threads" in done.stderr
    done = call(main, [*arguments, "--runner", BLOCKS, "--json"])
    assert done.exit_code == 0 and "blocks.py" in done.stdout, done.output
