"""The command line is a contract: options, exit codes, what is printed where, and that only success writes anything."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import cli
from onnxprune.model import save
from tests import oracle
from tests.oracle import dims, net

TEXT = """g (float[N,3,6,6] image) => (float[N,5] scores)
    <float[16,3,3,3] w1, float[16] b1, float[24,16,3,3] w2, float[24] b2, float[24,10] head, float[10] bias, float[10,5] last> {
    c1 = Conv<pads=[1,1,1,1]>(image, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
    r2 = Relu(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    h = MatMul(f, head)
    a = Add(h, bias)
    t = Tanh(a)
    scores = MatMul(t, last)
}"""


def network() -> onnx.ModelProto:
    model = net(TEXT)
    for node in model.graph.node:
        node.name = f"/layers/{node.output[0]}/{node.op_type}"
    return model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model, which is also the working directory."""
    onnx.save(network(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def contents(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")))
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() and os.access(p, os.R_OK) else ""
        for p in files
    }


def refused(folder: Path, code: int, *arguments: object) -> str:
    """The one line on stderr of a command that must fail with `code` and leave the folder as it is."""
    before = contents(folder)
    result = run(*arguments)
    assert result.exit_code == code, f"{result.exit_code}: {result.output} {result.exception!r}"
    assert contents(folder) == before, "something was written"
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("onnxprune: "), result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


# ---------------------------------------------------------------- what succeeds


def test_prune_prints_what_it_did_and_writes_all_it_was_asked_for(here: Path) -> None:
    result = run(
        "prune",
        "m.onnx",
        "-o",
        "s.onnx",
        "--macs",
        "0.5",
        "--plan",
        "plan.json",
        "--report",
        "r.md",
        "--recover",
        "none",
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for word in ("found", "removed", "declined", "checked", "MACs", "parameters", "bytes", "ms per run", "s.onnx"):
        assert word in result.stdout
    assert "graph output 'scores' keeps its shape" in result.stdout
    assert sorted(p.name for p in here.iterdir()) == ["m.onnx", "plan.json", "r.md", "s.onnx"]
    onnx.checker.check_model(onnx.load("s.onnx"), full_check=True)
    plan = json.loads(Path("plan.json").read_text())
    assert plan["macs"][1] <= plan["macs"][0] / 2
    assert plan["model_sha256"] == hashlib.sha256(Path("m.onnx").read_bytes()).hexdigest()
    oracle.compare(onnx.load("m.onnx"), onnxprune.prune("m.onnx", apply="plan.json", benchmark=False))


@pytest.mark.parametrize("target", [("--ratio", "0.5"), ("--macs", "0.6"), ("--params", "0.6")])
def test_every_target(here: Path, target: tuple[str, str]) -> None:
    result = run("prune", "m.onnx", "-o", "s.onnx", *target, "--json", "--round-to", 1)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    name, amount = target[0][2:], float(target[1])
    assert report["target"] == {name: amount}
    if name == "ratio":
        assert [g["removed"] for g in report["groups"]] == [g["units"] // 2 for g in report["groups"]]
    else:
        before, after = report["cost"][name]
        assert after <= amount * before
    sizes = [sum(int(np.prod(t.dims)) for t in onnx.load(p).graph.initializer) for p in ("m.onnx", "s.onnx")]
    assert sizes == report["cost"]["params"], "an independent count"


def test_ratio_zero_copies_the_file(here: Path) -> None:
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0").exit_code == 0
    assert Path("s.onnx").read_bytes() == Path("m.onnx").read_bytes()


def test_json_is_json_and_nothing_else(here: Path) -> None:
    result = run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--json")
    assert result.exit_code == 0 and result.stderr == ""
    report = json.loads(result.stdout)
    assert {"groups", "declined", "cost", "check", "latency_ms", "seconds", "target"} <= set(report)
    assert report["check"]["error"] <= 1e-4 and report["check"]["exact"] is True
    assert all(d["reason"] for d in report["declined"])


def test_quiet_is_silent_and_verbose_says_more(here: Path) -> None:
    quiet = run("prune", "m.onnx", "-o", "a.onnx", "--ratio", "0.5", "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")
    plain = run("prune", "m.onnx", "-o", "b.onnx", "--ratio", "0.5")
    loud = run("prune", "m.onnx", "-o", "c.onnx", "--ratio", "0.5", "-v")
    assert len(loud.stdout.splitlines()) > len(plain.stdout.splitlines())
    assert "/layers/c2/Conv" in loud.stdout
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes() == Path("c.onnx").read_bytes()


def test_reports_for_people_and_machines(here: Path) -> None:
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--report", "r.md", "-q").exit_code == 0
    text = Path("r.md").read_text()
    assert (
        text.startswith("# ")
        and "| MACs of 2 samples |" in text
        and "masked original" in text
        and "## Declined" in text
    )
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--report", "r.json", "-q").exit_code == 0
    assert json.loads(Path("r.json").read_text())["target"] == {"ratio": 0.5}
    assert ".md or .json" in refused(here, 2, "prune", "m.onnx", "-o", "t.onnx", "--ratio", "0.5", "--report", "r.txt")


def test_apply_replays_byte_for_byte(here: Path) -> None:
    assert (
        run(
            "prune", "m.onnx", "-o", "a.onnx", "--macs", "0.5", "--importance", "random", "--plan", "p.json", "-q"
        ).exit_code
        == 0
    )
    assert run("prune", "m.onnx", "-o", "b.onnx", "--apply", "p.json", "--plan", "q.json", "-q").exit_code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert Path("p.json").read_text() == Path("q.json").read_text()


def test_apply_remembers_what_the_plan_was_made_with(here: Path) -> None:
    """--include-inexact, --exclude and --input-shape change which units there are."""
    model = net("""g (float[N,S,6] x) => (float[N,S,3] y) <float[6,12] e, float[12] s, float[12,16] w, float[16,3] h> {
        x0 = MatMul(x, e)
        n = LayerNormalization(x0, s)
        f = MatMul(n, w)
        r = Relu(f)
        y = MatMul(r, h)
    }""")
    onnx.save(model, "ln.onnx")
    options = ("--include-inexact", "--input-shape", "x:2,9,6", "--exclude", "h")
    assert run("prune", "ln.onnx", "-o", "a.onnx", "--ratio", "0.5", "--plan", "p.json", "-q", *options).exit_code == 0
    assert run("prune", "ln.onnx", "-o", "b.onnx", "--apply", "p.json", "-q").exit_code == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


@pytest.mark.parametrize("importance", ["l1", "l2", "linf", "random"])
def test_importance(here: Path, importance: str) -> None:
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--importance", importance, "-q").exit_code == 0


def test_importance_picks_the_small_ones(here: Path) -> None:
    """Every other channel of the first convolution is a hundred times smaller: those go."""
    model = network()
    for tensor in model.graph.initializer:
        if tensor.name in ("w1", "w2"):
            array = numpy_helper.to_array(tensor).copy()
            (array if tensor.name == "w1" else array.swapaxes(0, 1))[::2] *= 0.01
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, "m.onnx")
    for importance in ("l1", "l2", "linf"):
        options = ("--importance", importance, "--round-to", 1, "--plan", "p.json", "-q")
        assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", *options).exit_code == 0
        members = [m for g in json.loads(Path("p.json").read_text())["groups"] for m in g["members"]]
        assert next(m["removed"] for m in members if m["tensor"] == "w1") == list(range(0, 16, 2))


def test_random_is_reproducible(here: Path) -> None:
    def removed(seed: int) -> list[Any]:
        options = ("--importance", "random", "--seed", seed, "--plan", "p.json", "-q")
        assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", *options).exit_code == 0
        return [g["classes"] for g in json.loads(Path("p.json").read_text())["groups"]]

    assert removed(3) == removed(3)
    assert removed(3) != removed(4)


@pytest.mark.parametrize(("round_to", "kept"), [(1, 10), (4, 12), (8, 8), (16, 16), (None, 8)])
def test_round_to(here: Path, round_to: int | None, kept: int) -> None:
    """16 channels less 40 % are 10; a tie of multiples keeps more, and a multiple of 16 keeps all."""
    options = () if round_to is None else ("--round-to", round_to)
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.4", "-q", *options).exit_code == 0
    assert dims(onnx.load("s.onnx"), "w1")[0] == kept


def test_include_and_exclude_restrict(here: Path) -> None:
    def widths(*options: str) -> tuple[int, int, int]:
        result = run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--round-to", 1, "-q", *options)
        assert result.exit_code == 0, result.stderr
        model = onnx.load("s.onnx")
        return dims(model, "w1")[0], dims(model, "w2")[0], dims(model, "head")[1]

    assert widths() == (8, 12, 5)
    assert widths("--exclude", "*c1*") == (16, 12, 5)
    assert widths("--exclude", "w2") == (16, 24, 5), "the tensor's inputs and outputs both stay"
    assert widths("--exclude", "/layers/c*/Conv") == (16, 24, 5)
    assert widths("--include", "/layers/h/MatMul")[2] == 5
    assert widths("--include", "/layers/h/MatMul")[0] == 16
    assert widths("--include", "w1", "--exclude", "head")[0] == 8


def test_everything_excluded_is_nothing_prunable(here: Path) -> None:
    line = refused(here, 5, "prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--exclude", "*")
    assert "excluded" in line


@pytest.mark.parametrize("option", ["--include", "--exclude"])
def test_globs_that_match_nothing(here: Path, option: str) -> None:
    line = refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", option, "layer7*")
    assert option in line and "layer7*" in line


def test_include_inexact(here: Path) -> None:
    model = net("""g (float[N,S,6] x) => (float[N,S,3] y) <float[6,12] e, float[12] s, float[12,3] h> {
        x0 = MatMul(x, e)
        n = LayerNormalization(x0, s)
        y = MatMul(n, h)
    }""")
    onnx.save(model, "ln.onnx")
    line = refused(here, 5, "prune", "ln.onnx", "-o", "s.onnx", "--ratio", "0.5")
    assert "LayerNormalization" in line
    result = run("prune", "ln.onnx", "-o", "s.onnx", "--ratio", "0.5", "--include-inexact", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["check"]["exact"] is False
    assert dims(onnx.load("s.onnx"), "e") == [6, 6]


def test_recover_knows_only_none(here: Path) -> None:
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--recover", "none", "-q").exit_code == 0
    result = run("prune", "m.onnx", "-o", "t.onnx", "--ratio", "0.5", "--recover", "magic")
    assert result.exit_code == 2 and not Path("t.onnx").exists()


def test_data_and_input_shape(here: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez("one.npz", image=rng.standard_normal((7, 3, 6, 6)).astype(np.float32), labels=np.arange(7))
    Path("many").mkdir()
    for k in range(3):
        np.savez(f"many/{k}.npz", image=rng.standard_normal((2, 3, 6, 6)).astype(np.float32))
    plans = []
    for options in (("--data", "one.npz"), ("--data", "many"), ("--input-shape", "image:4,3,6,6"), ()):
        result = run(
            "prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--plan", "p.json", "--recover", "none", "-q", *options
        )
        assert result.exit_code == 0, result.stderr
        plans.append(json.loads(Path("p.json").read_text())["groups"])
    assert all(p == plans[0] for p in plans)
    assert run("inspect", "m.onnx", "--data", "one.npz").exit_code == 0
    assert run("bench", "m.onnx", "--data", "many", "--runs", 3).exit_code == 0


def test_output_may_replace_an_older_result(here: Path) -> None:
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "-q").exit_code == 0
    first = Path("s.onnx").read_bytes()
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.75", "-q").exit_code == 0
    assert Path("s.onnx").read_bytes() != first


def test_external_data_is_read_and_written_beside(here: Path) -> None:
    Path("big").mkdir()
    Path("out").mkdir()
    model = network()
    onnx.save(model, "big/m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    assert run("prune", "big/m.onnx", "-o", "out/s.onnx", "--ratio", "0.5", "--plan", "out/p.json", "-q").exit_code == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["p.json", "s.onnx", "s.onnx.data"]
    assert sorted(p.name for p in Path("big").iterdir()) == ["m.onnx", "weights.bin"]
    bare = onnx.load("out/s.onnx", load_external_data=False)
    places = {e.value for t in bare.graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {"s.onnx.data"}
    apart = onnx.load("out/s.onnx")
    run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "-q")
    whole = onnx.load("s.onnx")
    for a in whole.graph.initializer:
        b = next(t for t in apart.graph.initializer if t.name == a.name)
        assert np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
    assert run("verify", "big/m.onnx", "out/s.onnx", "--plan", "out/p.json").exit_code == 0
    assert run("inspect", "big/m.onnx").exit_code == 0


def test_models_that_need_no_real_name(here: Path) -> None:
    odd = here / "a [b] 'c' é.onnx"
    odd.write_bytes((here / "m.onnx").read_bytes())
    result = run("prune", odd, "-o", here / "o [x].onnx", "--ratio", "0.5", "-v")
    assert result.exit_code == 0 and "o [x].onnx" in result.stdout


# ---------------------------------------------------------------- the other commands


def test_inspect(here: Path) -> None:
    result = run("inspect", "m.onnx")
    assert result.exit_code == 0 and "graph output 'scores' keeps its shape" in result.stdout
    assert "member: w1 axis 0" in run("inspect", "m.onnx", "-v").stdout
    found = json.loads(run("inspect", "m.onnx", "--json").stdout)
    per_sample = 36 * (16 * 27 + 24 * 16 * 9) + 24 * 10 + 10 * 5
    assert found["macs"] > 0 and found["macs"] % per_sample == 0, "some number of samples"
    assert found["params"] == sum(int(np.prod(t.dims)) for t in network().graph.initializer)
    first = next(g for g in found["groups"] if g["units"] == 16)
    assert first["removable"] == 15 and first["exact"] is True and first["macs"] > 0
    assert first["params"] == 16 * 27 + 16 + 24 * 16 * 9
    assert {(m["tensor"], m["axis"]) for m in first["members"]} == {
        ("w1", 0),
        ("b1", 0),
        ("w2", 1),
        ("c1", 1),
        ("r1", 1),
    }
    pinned = [g for g in found["groups"] if g["pins"]]
    assert pinned and all(p["reason"] for g in pinned for p in g["pins"])


def test_names_are_whole_where_no_terminal_reads(here: Path) -> None:
    model = network()
    for node in model.graph.node:
        node.name = "/deep" * 30 + node.name
    onnx.save(model, "deep.onnx")
    for arguments in (("inspect", "deep.onnx"), ("ops", "--verbose")):
        lines = run(*arguments).stdout.splitlines()
        assert not any("…" in line for line in lines)
    assert "/deep" * 30 + "/layers/c1/Conv" in run("inspect", "deep.onnx").stdout


def test_inspect_names_remedies(here: Path) -> None:
    model = net("""g (float[N,S,6] x) => (float[N,S,3] y) <float[6,12] e, float[12] s, float[12,3] h> {
        x0 = MatMul(x, e)
        n = LayerNormalization(x0, s)
        y = MatMul(n, h)
    }""")
    onnx.save(model, "ln.onnx")
    assert "--include-inexact" in run("inspect", "ln.onnx").stdout
    pins = [p for g in json.loads(run("inspect", "ln.onnx", "--json").stdout)["groups"] for p in g["pins"]]
    assert any("--include-inexact" in p["remedy"] for p in pins)
    loose = json.loads(run("inspect", "ln.onnx", "--json", "--include-inexact").stdout)
    assert [g["removable"] for g in loose["groups"] if g["units"] == 12] == [11]


def test_inspect_lists_operators_without_a_rule(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that ONNX Runtime knows and we do not pins what it touches, and is named."""
    from onnxprune import ops

    honest = ops.rule_for
    monkeypatch.setattr(ops, "rule_for", lambda op, domain: ops.UNKNOWN if op == "Tanh" else honest(op, domain))
    result = run("inspect", "m.onnx")
    assert result.exit_code == 0 and "Tanh" in result.stdout
    found = json.loads(run("inspect", "m.onnx", "--json").stdout)
    assert any("Tanh" in name for name in found["unknown_operators"])
    assert sorted(g["units"] for g in found["groups"] if g["removable"]) == [16, 24]
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "-q").exit_code == 0
    assert dims(onnx.load("s.onnx"), "head")[1] == 10


def test_ops_lists_every_operator() -> None:
    rows = json.loads(run("ops", "--json").stdout)
    listed = {r["operator"] for r in rows if r["domain"] in ("", "ai.onnx")}
    known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    assert known <= listed, sorted(known - listed)
    assert all(r["kind"] for r in rows)
    assert any(r["domain"] == "com.microsoft" for r in rows)
    table = run("ops").stdout
    assert "Conv" in table and "contraction" in table


def test_verify_accepts_the_pruned_and_refuses_the_tampered(here: Path) -> None:
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--plan", "p.json", "-q").exit_code == 0
    good = run("verify", "m.onnx", "s.onnx", "--plan", "p.json")
    assert good.exit_code == 0 and "equal" in good.stdout
    assert json.loads(run("verify", "m.onnx", "s.onnx", "--plan", "p.json", "--json").stdout)["error"] <= 1e-4
    np.savez("x.npz", image=np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32))
    assert run("verify", "m.onnx", "s.onnx", "--plan", "p.json", "--data", "x.npz").exit_code == 0
    model = onnx.load("s.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "last")
    array = numpy_helper.to_array(tensor).copy()
    array[0] += 0.1
    tensor.CopyFrom(numpy_helper.from_array(array, "last"))
    onnx.save(model, "bad.onnx")
    assert "differs" in refused(here, 4, "verify", "m.onnx", "bad.onnx", "--plan", "p.json")
    model.graph.output[0].name = "others"
    model.graph.node[-1].output[0] = "others"
    onnx.save(model, "renamed.onnx")
    assert "output" in refused(here, 4, "verify", "m.onnx", "renamed.onnx", "--plan", "p.json")
    onnx.save(network(), "same.onnx")
    refused(here, 4, "verify", "m.onnx", "same.onnx", "--plan", "p.json")
    refused(here, 2, "verify", "m.onnx", "none.onnx", "--plan", "p.json")
    refused(here, 2, "verify", "s.onnx", "m.onnx", "--plan", "p.json")


def test_bench(here: Path) -> None:
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "-q").exit_code == 0
    rows = json.loads(run("bench", "m.onnx", "s.onnx", "--runs", 5, "--json").stdout)
    assert [r["model"] for r in rows] == ["m.onnx", "s.onnx"]
    assert rows[0]["speedup"] == 1 and all(0 < r["min_ms"] <= r["median_ms"] <= r["max_ms"] for r in rows)
    assert "median ms" in run("bench", "m.onnx", "--runs", 3).stdout
    refused(here, 2, "bench", "m.onnx", "none.onnx")


def test_help_and_version() -> None:
    assert onnxprune.__version__ in run("--version").stdout
    for command in ((), ("prune",), ("inspect",), ("ops",), ("verify",), ("bench",)):
        result = run(*command, "--help")
        assert result.exit_code == 0 and "Usage" in result.stdout


# ---------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ratio", "0.5", "--macs", "0.5"),
        ("--ratio", "0.5", "--apply", "p.json"),
        ("--ratio", "-0.1"),
        ("--ratio", "1.5"),
        ("--macs", "0"),
        ("--macs", "2"),
        ("--macs", "nan"),
        ("--params", "inf"),
        ("--ratio", "0.5", "--round-to", "0"),
        ("--ratio", "0.5", "--round-to", "-8"),
        ("--ratio", "0.5", "--input-shape", "image"),
        ("--ratio", "0.5", "--input-shape", "image:"),
        ("--ratio", "0.5", "--input-shape", "image:1,a,6,6"),
        ("--ratio", "0.5", "--input-shape", "image:0,3,6,6"),
        ("--ratio", "0.5", "--input-shape", "image:1,3,6"),
        ("--ratio", "0.5", "--input-shape", "image:1,4,6,6"),
        ("--ratio", "0.5", "--input-shape", "picture:1,3,6,6"),
        ("--ratio", "0.5", "--input-shape", "image:99999999999999999999,3,6,6"),
        ("--ratio", "0.5", "--metric", "top1"),
    ],
)
def test_usage(here: Path, arguments: tuple[str, ...]) -> None:
    refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", *arguments)


@pytest.mark.parametrize(
    "option",
    [("--depth", "auto"), ("--importance", "l1"), ("--round-to", "4"), ("--exclude", "last"), ("--include-inexact",)],
)
def test_a_plan_has_decided(here: Path, option: tuple[str, ...]) -> None:
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--plan", "p.json", "-q").exit_code == 0
    line = refused(here, 2, "prune", "m.onnx", "-o", "t.onnx", "--apply", "p.json", *option)
    assert option[0] in line and "has decided" in line


@pytest.mark.parametrize(
    "arguments",
    [("prune", "m.onnx"), ("prune",), ("nonsense",), ("prune", "m.onnx", "-o", "s.onnx", "--ratio", "half")],
)
def test_usage_that_click_refuses(here: Path, arguments: tuple[str, ...]) -> None:
    before = contents(here)
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert contents(here) == before


def test_target_not_reachable(here: Path) -> None:
    line = refused(
        here, 3, "prune", "m.onnx", "-o", "s.onnx", "--macs", "0.0001", "--plan", "p.json", "--report", "r.md"
    )
    assert "at most down to 0." in line
    refused(here, 3, "prune", "m.onnx", "-o", "s.onnx", "--params", "0.001", "--json")


def test_nothing_prunable(here: Path) -> None:
    onnx.save(net("g (float[N,4] x) => (float[N,8] y) <float[4,8] w> { y = MatMul(x, w) }"), "pinned.onnx")
    assert "graph output 'y'" in refused(here, 5, "prune", "pinned.onnx", "-o", "s.onnx", "--ratio", "0.5")
    onnx.save(net("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), "bare.onnx")
    refused(here, 5, "prune", "bare.onnx", "-o", "s.onnx", "--macs", "0.5")


def test_verification_failure_writes_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a broken rule in the engine, the result is refused with exit code 4."""
    from onnxprune.api import carry

    honest = carry.rewrite

    def broken(*arguments: Any) -> onnx.ModelProto:
        model = honest(*arguments)
        tensor = next(t for t in model.graph.initializer if t.name == "last")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, "last"))
        return model

    monkeypatch.setattr(carry, "rewrite", broken)
    line = refused(here, 4, "prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--plan", "p.json", "--report", "r.md")
    assert "differs from the masked original" in line


# ---------------------------------------------------------------- bad models


def custom_operator(folder: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Mystery", ["h"], ["y"], domain="nowhere")],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.ones((4, 8), np.float32), "w")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), folder / "bad.onnx")


def edited(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        model = network()
        change(model)
        (folder / "bad.onnx").write_bytes(model.SerializeToString())

    return make


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "r1"


def new_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def new_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def nan_weight(model: onnx.ModelProto) -> None:
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array.flat[5] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, model.graph.initializer[0].name))


def missing_tensor(model: onnx.ModelProto) -> None:
    model.graph.node[3].input[0] = "nobody"


def twice_named(model: onnx.ModelProto) -> None:
    model.graph.node[3].output[0] = "r1"


def misfit(model: onnx.ModelProto) -> None:
    """Shapes that no input can fit."""
    for tensor in model.graph.initializer:
        if tensor.name == "head":
            tensor.CopyFrom(numpy_helper.from_array(np.ones((7, 10), np.float32), "head"))


def unknown_rank(model: onnx.ModelProto) -> None:
    """Neither rank nor sizes of the input are known, nothing beside it tells them, and the first guess does not run."""
    graph = model.graph
    graph.input[0].type.tensor_type.ClearField("shape")
    for node in graph.node:
        node.input[:] = ["passed" if n == graph.input[0].name else n for n in node.input]
    graph.node.insert(0, helper.make_node("Identity", [graph.input[0].name], ["passed"]))


def short_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def external(location: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        model = network()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (folder / "bad.onnx").write_bytes(model.SerializeToString())

    return make


def cut_external(folder: Path) -> None:
    onnx.save(network(), folder / "bad.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    data = (folder / "w.bin").read_bytes()
    (folder / "w.bin").write_bytes(data[: len(data) // 2])


BAD = {
    "no such file": lambda f: None,
    "empty": lambda f: (f / "bad.onnx").write_bytes(b""),
    "truncated": lambda f: (f / "bad.onnx").write_bytes(network().SerializeToString()[:-1000]),
    "not protobuf": lambda f: (f / "bad.onnx").write_bytes(bytes(range(256)) * 20),
    "text": lambda f: (f / "bad.onnx").write_text("hello\n" * 50),
    "a picture": lambda f: (f / "bad.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a zip": lambda f: (f / "bad.onnx").write_bytes(b"PK\x03\x04" + bytes(100)),
    "a directory": lambda f: (f / "bad.onnx").mkdir(),
    "too new opset": edited(new_opset),
    "too new IR": edited(new_ir),
    "external data missing": external("nowhere.bin"),
    "external data outside": external("../outside.bin"),
    "external data absolute": external("/etc/passwd"),
    "external data cut off": cut_external,
    "cycle": edited(cycle),
    "a tensor that nobody makes": edited(missing_tensor),
    "a tensor that two nodes make": edited(twice_named),
    "shapes that do not fit": edited(misfit),
    "a rank that is not known": edited(unknown_rank),
    "tensor data too short": edited(short_tensor),
    "custom operator": custom_operator,
    "NaN weights": edited(nan_weight),
    "no graph": lambda f: (f / "bad.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()),
    "no outputs": edited(lambda m: m.graph.ClearField("output")),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_bad_models(here: Path, make: Callable[[Path], object]) -> None:
    make(here)
    line = refused(
        here, 2, "prune", "bad.onnx", "-o", "s.onnx", "--ratio", "0.5", "--plan", "p.json", "--report", "r.md"
    )
    assert len(line) < 500
    if "external" not in str(make):
        refused(here, 2, "inspect", "bad.onnx")


def test_unreadable_model(here: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (here / "m.onnx").chmod(0)
    refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5")


# ---------------------------------------------------------------- bad feeds


def feed(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / "d.npz", **arrays)


IMAGE = np.zeros((2, 3, 6, 6), np.float32)
FEEDS = {
    "missing": lambda f: None,
    "wrong name": feed(picture=IMAGE),
    "wrong type": feed(image=IMAGE.astype(np.complex64)),
    "text": feed(image=np.array([["a"]])),
    "wrong rank": feed(image=IMAGE[0]),
    "wrong size": feed(image=IMAGE[:, :, :5]),
    "no samples": feed(image=IMAGE[:0]),
    "NaN": feed(image=IMAGE * np.nan),
    "infinite": feed(image=IMAGE + np.inf),
    "objects": lambda f: np.savez(f / "d.npz", image=np.array([object()], dtype=object)),
    "not an archive": lambda f: (f / "d.npz").write_text("hello"),
    "empty file": lambda f: (f / "d.npz").write_bytes(b""),
    "a single array of another shape": lambda f: np.save((f / "d.npz").open("wb"), IMAGE[0]),
    "empty folder": lambda f: (f / "d.npz").mkdir(),
    "folder of others": lambda f: ((f / "d.npz").mkdir(), (f / "d.npz" / "readme.txt").write_text("x")),
    "folder, one bad": lambda f: (
        (f / "d.npz").mkdir(),
        np.savez(f / "d.npz" / "0.npz", image=IMAGE),
        np.savez(f / "d.npz" / "1.npz", image=IMAGE[:, :2]),
    ),
}


@pytest.mark.parametrize("make", FEEDS.values(), ids=FEEDS.keys())
def test_bad_feeds(here: Path, make: Callable[[Path], object]) -> None:
    make(here)
    line = refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--data", "d.npz")
    assert "--data" in line and "d.npz" in line


# ---------------------------------------------------------------- bad plans


def planned(here: Path) -> dict[str, Any]:
    assert run("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--plan", "p.json", "-q").exit_code == 0
    (here / "s.onnx").unlink()
    return json.loads((here / "p.json").read_text())


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another file": lambda p: p | {"model_sha256": "0" * 64},
    "another version": lambda p: p | {"version": 3},
    "no groups": lambda p: {k: v for k, v in p.items() if k != "groups"},
    "groups of another kind": lambda p: p | {"groups": {}},
    "a list": lambda p: [p],
    "null": lambda p: None,
    "a class too many": lambda p: p["groups"][0]["classes"].append(10**6) or p,
    "a negative class": lambda p: p["groups"][0]["classes"].append(-1) or p,
    "a huge class": lambda p: p["groups"][0]["classes"].append(10**30) or p,
    "a class that is text": lambda p: p["groups"][0]["classes"].append("3") or p,
    "a class less": lambda p: p["groups"][0]["classes"].pop() and p,
    "another position": lambda p: p["groups"][0]["members"][0]["removed"].__setitem__(0, 15) or p,
    "a member less": lambda p: p["groups"][0]["members"].pop() and p,
    "members that are none": lambda p: p["groups"][0].__setitem__("members", [1, 2]) or p,
    "a group that is none": lambda p: p["groups"].append(3) or p,
    "a group less": lambda p: p["groups"][0].__setitem__("classes", []) or p,
    "settings of another kind": lambda p: p | {"settings": [1]},
    "settings with nonsense": lambda p: p | {"settings": p["settings"] | {"input_shapes": {"image": "abc"}}},
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_bad_plans(here: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    (here / "p.json").write_text(json.dumps(edit(planned(here))))
    refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", "--apply", "p.json")


@pytest.mark.parametrize("text", ["", "{", "not json", "[" * 100_000, "{}", "3", "\x00"])
def test_plans_that_are_no_json(here: Path, text: str) -> None:
    (here / "p.json").write_text(text)
    refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", "--apply", "p.json")
    (here / "p.json").write_bytes(b"\xff\xfe\x00")
    refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", "--apply", "p.json")
    refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", "--apply", "none.json")
    refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", "--apply", here)


# ---------------------------------------------------------------- bad output paths, killed runs


@pytest.mark.parametrize(
    "paths",
    [
        ("-o", "m.onnx"),
        ("-o", "./m.onnx"),
        ("-o", "link.onnx"),
        ("-o", "."),
        ("-o", "m.onnx/s.onnx"),
        ("-o", "s.onnx", "--plan", "m.onnx"),
        ("-o", "s.onnx", "--plan", "m.onnx/new/p.json"),
        ("-o", "s.onnx", "--plan", "s.onnx"),
        ("-o", "new/s.onnx", "--report", "m.onnx/r.md"),
        ("-o", "r.md", "--report", "r.md"),
        ("-o", "s.onnx", "--plan", "r.json", "--report", "r.json"),
        ("-o", ""),
        ("-o", "x" * 300 + ".onnx"),
        ("-o", "/dev/null"),
    ],
    ids=lambda p: " ".join(p)[:40],
)
def test_bad_output_paths(here: Path, paths: tuple[str, ...]) -> None:
    (here / "link.onnx").symlink_to(here / "m.onnx")
    refused(here, 2, "prune", "m.onnx", *paths, "--ratio", "0.5")


def test_missing_output_folders_are_made_once_all_is_well(here: Path) -> None:
    paths = ("-o", "new/dir/s.onnx", "--plan", "new/plans/p.json", "--report", "reports/r.md")
    refused(here, 3, "prune", "m.onnx", *paths, "--macs", "0.001")
    assert not (here / "new").exists() and not (here / "reports").exists()
    assert run("prune", "m.onnx", *paths, "--ratio", "0.5", "-q").exit_code == 0
    assert run("verify", "m.onnx", "new/dir/s.onnx", "--plan", "new/plans/p.json").exit_code == 0
    assert [p.name for p in (here / "new" / "dir").iterdir()] == ["s.onnx"] and (here / "reports" / "r.md").is_file()
    assert run("sparsify", "m.onnx", "-o", "sparse/a/s.onnx", "--sparsity", "0.5", "-q").exit_code == 0


def test_folders_that_were_made_go_again_where_writing_fails(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "_settle", full)
    refused(here, 2, "prune", "m.onnx", "-o", "new/dir/s.onnx", "--plan", "plans/p.json", "--ratio", "0.5")
    assert not (here / "new").exists() and not (here / "plans").exists()


def test_unwritable_output_folder(here: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    (here / "locked").mkdir(mode=0o500)
    refused(here, 2, "prune", "m.onnx", "-o", "locked/s.onnx", "--ratio", "0.5")


@pytest.mark.parametrize(
    "command",
    [
        ("prune", "m.onnx", "--ratio", "0.5"),
        ("prune", "m.onnx", "--macs", "0.5", "--during-training"),
        ("sparsify", "m.onnx", "--sparsity", "0.5"),
        ("finetune", "m.onnx", "--teacher", "m.onnx"),
    ],
)
def test_the_data_is_not_overwritten(here: Path, command: tuple[str, ...]) -> None:
    np.savez("d.npz", image=np.zeros((4, 3, 6, 6), np.float32))
    before = Path("d.npz").read_bytes()
    found = run(*command, "--data", "d.npz", "-o", "d.npz")
    assert found.exit_code == 2 and "is an input" in found.output and Path("d.npz").read_bytes() == before


@pytest.mark.parametrize(
    "command", [("prune", "m.onnx", "--ratio", "0.5"), ("sparsify", "m.onnx", "--sparsity", "0.5")]
)
def test_a_negative_seed_is_refused(here: Path, command: tuple[str, ...]) -> None:
    found = run(*command, "-o", "s.onnx", "--seed", "-1")
    assert found.exit_code == 2 and "--seed must be" in found.output and not Path("s.onnx").exists()


def test_output_that_cannot_be_written_after_all(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up at the last moment: neither model nor plan nor report appears."""
    from onnxprune.model import save

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "_settle", full)
    line = refused(here, 2, "prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--plan", "p.json", "--report", "r.md")
    assert "No space left" in line


def start(folder: Path, patch: str, *arguments: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own, with `patch` run before it."""
    code = (
        f"import sys\n{patch}\nfrom onnxprune.cli import main\nsys.argv = ['onnxprune'] + {list(arguments)!r}\nmain()"
    )
    path = os.pathsep.join([str(Path(onnxprune.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


SLOW_WRITE = """
import os, pathlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell ignore it
from onnxprune.model import save
settle = save._settle
def slow(file):
    settle(file)
    pathlib.Path("now").touch()
    import time; time.sleep(60)
save._settle = slow
"""


@pytest.mark.parametrize("apart", [False, True], ids=["one file", "external data"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_while_writing(here: Path, apart: bool, how: signal.Signals) -> None:
    """Stopped between writing and renaming: no file at the output path, or the old one, whole."""
    if apart:
        onnx.save(network(), here / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    process = start(here, SLOW_WRITE, "prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "-q")
    try:
        for _ in range(600):
            if (here / "now").exists():
                break
            time.sleep(0.1)
        assert (here / "now").exists(), process.communicate(timeout=5)
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0
    assert not (here / "s.onnx").exists()
    if how == signal.SIGINT:
        assert b"Traceback" not in errors and b"interrupted" in errors
        assert not list(here.glob(".s.onnx*")) and not list(here.glob("*.part"))


def test_as_a_module_in_its_own_process(here: Path) -> None:
    """`python -m onnxprune`: streams apart, exit codes of a process, no Traceback."""
    path = os.pathsep.join([str(Path(onnxprune.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "onnxprune", *arguments],
            cwd=here,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )

    good = command("prune", "m.onnx", "-o", "s.onnx", "--ratio", "0.5", "--json")
    assert good.returncode == 0 and good.stderr == "" and json.loads(good.stdout)
    bad = command("prune", "none.onnx", "-o", "s.onnx", "--ratio", "0.5")
    assert bad.returncode == 2 and bad.stdout == "" and len(bad.stderr.splitlines()) == 1
    (here / "t.onnx").write_bytes(
        net("g (float[2,4] x) => (float[2,8] y) <float[4,8] w> { y = MatMul(x, w) }").SerializeToString()
    )
    assert command("prune", "t.onnx", "-o", "u.onnx", "--ratio", "0.5").returncode == 5


# ---------------------------------------------------------------- the same as functions


def test_functions_do_what_the_command_does(here: Path) -> None:
    result = onnxprune.prune("m.onnx", onnxprune.Budget("macs", 0.5), benchmark=False)
    result.save("f.onnx")
    assert run("prune", "m.onnx", "-o", "c.onnx", "--macs", "0.5", "-q").exit_code == 0
    assert Path("f.onnx").read_bytes() == Path("c.onnx").read_bytes()
    from_memory = onnxprune.prune(onnx.load("m.onnx"), onnxprune.Budget("macs", 0.5), benchmark=False)
    assert from_memory.model == result.model
    with pytest.raises(onnxprune.BadInputError, match="Unknown option 'speed'"):
        onnxprune.prune("m.onnx", onnxprune.Budget("macs", 0.5), speed=3)
    with pytest.raises(onnxprune.BadInputError, match="Unknown target"):
        onnxprune.Budget("flops", 0.5)  # type: ignore[arg-type]
    with pytest.raises(onnxprune.BadInputError, match="exactly one"):
        onnxprune.prune("m.onnx", onnxprune.Budget("macs", 0.5), apply=result.plan)
