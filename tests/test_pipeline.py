"""`onnxprune run` as a pipeline uses it: a model exported anew every night, gates, what is published, and what a config may not say.

Seen red: a model in its place though a gate failed, an old report, a skipped run after the model changed, a typo that was taken silently.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner
from junitparser import JUnitXml
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import BadInputError
from onnxprune.choose.field import options
from onnxprune.choose.options import Options
from onnxprune.cli import main
from onnxprune.pipeline.config import Config, config_of
from onnxprune.pipeline.reading import read
from onnxprune.pipeline.record import workflow_commands
from onnxprune.pipeline.schemas import NAMES, generated, schema

ROOT = Path(__file__).resolve().parent.parent
DIGITS, DATA = ROOT / "models" / "digits.onnx", ROOT / "models" / "digits_calib.npz"
NIGHTLY = """
version: 1
models:
  - name: net
    model: net.onnx
    data: inputs.npz
    steps: [{prune: {macs: 0.5, round_to: 1}}]
    gates: {min_agreement: 0.97, max_size: "80%"}
    outputs: {model: out/net.onnx, plan: out/net.plan.json, report: out/net.md}
junit: out/junit.xml
"""


def export(path: Path, seed: int, copies: int, external: bool = False) -> None:
    """An exported net with 64 hidden neurons, of which `copies` each say the same: the more of these, the less is lost."""
    rng = np.random.default_rng(seed)
    own = 64 // copies
    w1 = np.repeat(rng.normal(size=(16, own)), copies, axis=1).astype(np.float32)
    w2 = rng.normal(size=(64, 5)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], "second"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", TensorProto.FLOAT, ["n", 16])],
        [value("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(w, n) for n, w in (("w1", w1), ("w2", w2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    else:
        onnx.save(model, path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an exported model, inputs and a config."""
    export(tmp_path / "net.onnx", 0, 4)
    np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(9).normal(size=(64, 16)).astype(np.float32))
    (tmp_path / "prune.yaml").write_text(NIGHTLY)
    return tmp_path


def shown(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "out").glob("*")) if p.name != "junit.xml"}


# ---------------------------------------------------------------- night after night


def test_a_week_of_nights(place: Path) -> None:
    config = place / "prune.yaml"
    first = onnxprune.run(config)
    assert first.is_published and first.exit_code == 0 and first.models[0].status == "passed"
    monday = shown(place)
    assert set(monday) == {"net.onnx", "net.onnx.run", "net.plan.json", "net.md"}
    again = onnxprune.run(config)
    assert again.models[0].status == "up to date" and again.exit_code == 0 and shown(place) == monday

    export(place / "net.onnx", 1, 4)  # another night, another seed
    second = onnxprune.run(config)
    tuesday = shown(place)
    assert second.models[0].status == "passed" and tuesday["net.onnx"] != monday["net.onnx"]

    export(place / "net.onnx", 2, 1)  # this one has nothing to spare
    third = CliRunner().invoke(main, ["run", str(config)])
    assert third.exit_code == 4
    assert "nothing was published" in third.stdout and "onnxprune: net: min_agreement: " in third.stderr
    assert third.stderr.count("\n") == 1
    assert shown(place) == tuesday
    cases = {c.name: c for suite in JUnitXml.fromfile(str(place / "out" / "junit.xml")) for c in suite}
    assert set(cases) == {"run", "min_agreement", "max_size"}
    assert "at least 0.97 wanted" in cases["min_agreement"].result[0].message and not cases["max_size"].result
    told = json.loads((place / "prune.report.json").read_text())
    assert not told["is_published"] and told["exit_code"] == 4
    gate = next(g for g in told["models"][0]["gates"] if g["name"] == "min_agreement")
    assert gate["measured"] < 0.97 and not gate["is_passed"]
    jsonschema.validate(told, schema("run-report"))

    export(place / "net.onnx", 1, 4)  # repaired: what lies there is of this very model
    assert onnxprune.run(config).models[0].status == "up to date" and shown(place) == tuesday


def test_the_same_inputs_give_the_same_bytes(place: Path) -> None:
    onnxprune.run(place / "prune.yaml")
    before = {n: b for n, b in shown(place).items() if n in ("net.onnx", "net.plan.json")}
    report = onnxprune.run(place / "prune.yaml", force=True)
    assert report.models[0].status == "passed"
    assert {n: b for n, b in shown(place).items() if n in before} == before


@pytest.mark.parametrize("change", ["data", "option", "output", "weights"])
def test_what_changed_is_made_anew(place: Path, change: str) -> None:
    export(place / "net.onnx", 0, 4, external=True)
    onnxprune.run(place / "prune.yaml")
    sets: list[str] = []
    if change == "data":
        np.savez(place / "inputs.npz", x=np.random.default_rng(5).normal(size=(64, 16)).astype(np.float32))
    elif change == "option":
        sets = ["models.net.steps.0.prune.macs=0.6"]
    elif change == "output":
        (place / "out" / "net.md").write_text("touched")
    else:
        export(place / "other.onnx", 3, 4, external=True)
        (place / "net.onnx.data").write_bytes((place / "other.onnx.data").read_bytes())
    assert onnxprune.run(place / "prune.yaml", sets=sets).models[0].status == "passed"
    assert onnxprune.run(place / "prune.yaml", sets=sets).models[0].status == "up to date"


def test_where_the_work_is_done_changes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that do not say it themselves are told by the command, and nothing is made anew because of it."""
    asked: list[dict[str, Any]] = []
    real = onnxprune.prune

    def noted(*given: Any, **how: Any) -> Any:
        asked.append({k: how[k] for k in ("jobs", "cluster", "checkpoint") if k in how})
        return real(*given, **how)

    monkeypatch.setattr("onnxprune.api.steps.prune", noted)
    config = place / "prune.yaml"
    done = CliRunner().invoke(main, ["run", str(config), "--jobs", "2", "--checkpoint", str(place / "kept")])
    assert done.exit_code == 0 and asked == [{"jobs": 2, "checkpoint": place / "kept"}]
    assert list((place / "kept").glob("*.json"))
    before = shown(place)
    own = "models.net.steps.0.prune"
    for sets in ([], [f"{own}.jobs=1"], [f"{own}.checkpoint=mine"], [f"{own}.cluster=tcp://127.0.0.1:1"]):
        assert onnxprune.run(config, sets=sets).models[0].status == "up to date" and shown(place) == before
    onnxprune.run(config, sets=[f"{own}.jobs=1", f"{own}.checkpoint=mine"], force=True, cluster="tcp://127.0.0.1:1")
    assert asked[-1] == {"jobs": 1, "checkpoint": place / "mine"} and (place / "mine").is_dir()
    assert {n: b for n, b in shown(place).items() if n == "net.onnx"} == {"net.onnx": before["net.onnx"]}


def test_where_the_work_is_done_is_checked_before_work(place: Path) -> None:
    config = place / "prune.yaml"
    with pytest.raises(BadInputError, match="--jobs must be at least 1"):
        onnxprune.run(config, jobs=0)
    with pytest.raises(BadInputError, match="leave it out with --cluster"):
        onnxprune.run(config, jobs=2, cluster="tcp://127.0.0.1:1")
    own = "models.net.steps.0.prune"
    with pytest.raises(BadInputError, match=r"prune\.yaml:\d+: --jobs counts processes of this machine"):
        onnxprune.run(config, sets=[f"{own}.jobs=2", f"{own}.cluster=tcp://127.0.0.1:1"])


def test_one_model_that_fails_holds_all_back(place: Path) -> None:
    export(place / "bad.onnx", 2, 1)
    text = NIGHTLY.replace(
        "junit:", "  - {model: bad.onnx, steps: [{prune: {macs: 0.001}}], outputs: {model: out/bad.onnx}}\njunit:"
    )
    (place / "prune.yaml").write_text(text)
    report = onnxprune.run(place / "prune.yaml")
    assert [r.status for r in report.models] == ["passed", "error"] and report.exit_code == 3
    assert not report.is_published and not shown(place)
    error = next(c for s in JUnitXml.fromfile(str(place / "out" / "junit.xml")) if s.name == "bad" for c in s)
    assert "cannot be reached" in error.result[0].message


def test_steps_in_order_and_where_the_model_comes_from(place: Path) -> None:
    sets = [
        "models.0.steps=[{prune: {macs: 0.6, round_to: 1}}, {sparsify: {sparsity: 0.3}}, quantize]",
        "models.0.gates={fidelity: 0.5}",
    ]
    report = onnxprune.run(place / "prune.yaml", sets=sets)
    ran = report.models[0]
    assert report.is_published, ran.line
    assert [s["step"] for s in ran.steps] == ["prune", "sparsify", "quantize"]
    made = onnx.load(place / "out" / "net.onnx")
    assert any(n.op_type == "DequantizeLinear" for n in made.graph.node)
    told = json.loads(next(p.value for p in made.metadata_props if p.key == "onnxprune"))
    assert told["source_sha256"] == ran.provenance["source_sha256"] and told["plan_sha256"] and told["onnxprune"]
    assert ran.numbers.macs is not None and ran.numbers.macs[1] < ran.numbers.macs[0]


def test_an_error_says_which_step(place: Path) -> None:
    report = onnxprune.run(
        place / "prune.yaml", sets=["models.0.steps=[{prune: {macs: 0.6}}, {sparsify: {sparsity: 7}}]"]
    )
    assert report.models[0].line.startswith("step 2 (sparsify): ") and report.exit_code == 2


def test_external_data_are_published_with_the_model(place: Path) -> None:
    export(place / "net.onnx", 0, 4, external=True)
    onnxprune.run(place / "prune.yaml")
    export(place / "net.onnx", 1, 4, external=True)
    assert onnxprune.run(place / "prune.yaml").is_published
    assert (place / "out" / "net.onnx.data").exists()
    onnx.checker.check_model(str(place / "out" / "net.onnx"), full_check=True)
    assert not list(place.glob("**/.onnxprune-*"))
    report = onnxprune.run(
        place / "prune.yaml", sets=["models.0.outputs.model=net.onnx.onnx", "models.0.outputs.plan=null"]
    )
    assert report.is_published  # beside the original, whose data keep their file


def test_gates_of_time(place: Path) -> None:
    sets = ["models.0.gates={min_speedup: 1000, max_latency: 1e6}"]
    report = onnxprune.run(place / "prune.yaml", sets=sets)
    gates = {g.name: g for g in report.models[0].gates}
    assert not gates["min_speedup"].is_passed and gates["max_latency"].is_passed and report.exit_code == 4
    assert "95 % certain" in gates["min_speedup"].line


def test_a_score_of_ones_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "my_score.py").write_text(
        "def negative(outputs, data):\n    return -float(abs(outputs['y']).mean()) * len(data['labels']) / 64\n"
    )
    x = np.load(place / "inputs.npz")["x"]
    np.savez(place / "labelled.npz", x=x, labels=np.zeros(64))
    sets = ["models.0.gates={max_drop: 100, metric: 'my_score:negative', data: labelled.npz}"]
    gate = onnxprune.run(place / "prune.yaml", sets=sets).models[0].gates[0]
    assert gate.is_passed and "my_score:negative" in gate.line and gate.measured is not None


def test_an_edited_score_is_measured_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    body = "def score(outputs, data):\n    return {} * float(abs(outputs['y']).mean())\n"
    (place / "edited_score.py").write_text(body.format("1.0"))
    (place / "named_score.py").write_text("from edited_score import score\n")
    sets = ["models.0.gates={max_drop: 100, metric: 'named_score:score'}"]

    def ran() -> Any:
        return onnxprune.run(place / "prune.yaml", sets=sets).models[0]

    first = ran()
    assert first.status == "passed" and ran().status == "up to date"
    (place / "edited_score.py").write_text(body.format("-20.0"))
    again = ran()
    assert again.status == "passed", "where the function is defined counts, not only where it is named"
    assert again.gates[0].measured == pytest.approx(-20 * first.gates[0].measured), (
        "and it is the edited one that judged"
    )
    assert ran().status == "up to date"


# ---------------------------------------------------------------- in GitHub


def test_annotations_and_summary(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = place / "summary.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    done = CliRunner().invoke(main, ["run", str(place / "prune.yaml"), "--set", "models.0.gates.max_size=100"])
    assert done.exit_code == 4
    line = next(x for x in done.stdout.splitlines() if x.startswith("::error "))
    assert f"file={str(place / 'prune.yaml').replace(':', '%3A')},line=4,title=onnxprune%3A net::max_size: " in line
    assert (
        page.read_text().startswith("before\n## onnxprune: nothing was published")
        and "**failed**: max_size" in page.read_text()
    )


def test_names_cannot_forge_what_ci_reads(place: Path) -> None:
    """A name with a line break is no second command, and no markup."""
    forged = "a\n::set-output name=x::y<img src=x>|`"
    report = onnxprune.run(
        place / "prune.yaml", sets=[f"models.0.name={json.dumps(forged)}", "models.0.gates.max_size=100"]
    )
    assert all("\n" not in line for line in workflow_commands(report))
    from onnxprune.pipeline.record import junit, summary

    assert "<img" not in summary(report) and "\n::set-output" not in summary(report)
    assert JUnitXml.fromstring(junit(report)).failures == 1


def test_the_action_is_what_its_steps_do(place: Path) -> None:
    """As GitHub runs it: every step is a script of bash with the inputs in its environment."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    install, run = action["runs"]["steps"]
    bin_ = place / "bin"
    bin_.mkdir()
    for name, text in (
        ("onnxprune", f'exec "{sys.executable}" -m onnxprune "$@"'),
        ("python", f'echo "$@" >> {place}/installed'),
    ):
        (bin_ / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_ / name).chmod(0o755)
    base = {"PATH": f"{bin_}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "GITHUB_OUTPUT": str(place / "output")}

    def shell(step: dict[str, Any], **given: str) -> int:
        (place / "output").write_text("")
        assert set(step["env"]) == set(given)
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        return subprocess.run(command, cwd=place, env=os.environ | base | given, check=False).returncode

    assert shell(install, VERSION="", EXTRAS="", ACTION_PATH="/action") == 0
    assert shell(install, VERSION="", EXTRAS="finetune", ACTION_PATH="/action") == 0
    assert shell(install, VERSION="onnxprune==1", EXTRAS="", ACTION_PATH="/action") == 0
    installed = (place / "installed").read_text().splitlines()
    assert [x.split()[-1] for x in installed] == ["/action", "/action[finetune]", "onnxprune==1"]
    assert shell(run, CONFIG="prune.yaml", ARGS="") == 0
    assert (place / "output").read_text() == "report=prune.report.json\npassed=true\n"
    assert shell(run, CONFIG="prune.yaml", ARGS="--set\nmodels.net.gates.max_size=1 B\n--force") == 4
    assert (place / "output").read_text() == "report=prune.report.json\npassed=false\n"
    assert not json.loads((place / "prune.report.json").read_text())["is_published"]


def test_the_action_and_the_dockerfile_are_well_formed() -> None:
    tools = Path(sys.executable).parent
    for command in (
        [tools / "check-jsonschema", "--builtin-schema", "vendor.github-actions", "action.yml"],
        [tools / "hadolint", "Dockerfile"],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    copied = [
        w
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for w in line.split()[1:-1]
    ]
    assert all((ROOT / name).exists() for name in copied)


# ---------------------------------------------------------------- a config to start from


def test_init_writes_what_run_takes(place: Path) -> None:
    (place / "prune.yaml").unlink()
    np.savez(place / "net_calib.npz", x=np.load(place / "inputs.npz")["x"])
    done = CliRunner().invoke(main, ["init", str(place / "net.onnx"), "-o", str(place / "prune.yaml")])
    assert done.exit_code == 0, done.output
    text = (place / "prune.yaml").read_text()
    assert "input x: [n, 16]" in text and "1 group of channels" in text and 'data: "net_calib.npz"' in text
    assert onnxprune.run(place / "prune.yaml").is_published
    again = CliRunner().invoke(main, ["init", str(place / "net.onnx"), "-o", str(place / "prune.yaml")])
    assert again.exit_code == 2 and "--force" in again.stderr and (place / "prune.yaml").read_text() == text


def test_init_without_data(place: Path) -> None:
    text = onnxprune.init(place / "net.onnx", place / "sub" / "mine.yaml")
    assert "# data: calib.npz" in text and 'model: "../net.onnx"' in text
    assert onnxprune.run(place / "sub" / "mine.yaml").is_published
    assert (place / "sub" / "pruned" / "net.onnx").exists()


def test_every_commented_key_of_the_starter_is_one(place: Path) -> None:
    """What `init` proposes in comments is accepted where the hash is taken away."""
    text = onnxprune.init(place / "net.onnx", place / "mine.yaml")
    for line in text.splitlines():
        key = line.strip().removeprefix("# ").split(":")[0]
        if line.startswith("      # ") and ":" in line and key.isidentifier():
            (place / "one.yaml").write_text(
                text.replace(line, line.replace("# ", "", 1)).replace("# data: calib", "data: inputs")
            )
            document = read(place / "one.yaml", (), {})
            config_of(document)


# ---------------------------------------------------------------- what a config may say


def config(text: str, place: Path, environment: dict[str, str] | None = None, sets: tuple[str, ...] = ()) -> Config:
    (place / "c.yaml").write_text(text)
    return config_of(read(place / "c.yaml", sets, environment or {}))


ENTRY = "models:\n  - model: net.onnx\n    outputs: {model: out.onnx}\n"
REFUSED: dict[str, tuple[str, str]] = {
    "empty": ("", "must hold keys such as 'models:'"),
    "a list": ("- a\n", "must hold keys such as 'models:'"),
    "no models": ("models: []\n", "c.yaml:1: models: "),
    "an unknown key": (
        ENTRY + "    steps:\n      - prune: {mac: 0.5}\n",
        "c.yaml:5: unknown key 'mac' in models.0.steps.0.prune; did you mean 'macs'?",
    ),
    "an unknown gate": (
        ENTRY + "    gates: {max_drp: 1}\n",
        "c.yaml:4: unknown key 'max_drp' in models.0.gates; did you mean 'max_drop'?",
    ),
    "an unknown default": (
        "defaults: {date: x}\n" + ENTRY,
        "c.yaml:1: unknown key 'date' in defaults; did you mean 'data'?",
    ),
    "an unknown step": (
        ENTRY + "    steps: [shrink]\n",
        "c.yaml:4: unknown key 'shrink' in models.0.steps.0; known are prune,",
    ),
    "two steps in one": (ENTRY + "    steps: [{prune: {}, quantize: {}}]\n", "a step has exactly one of the keys"),
    "two targets": (ENTRY + "    steps: [{prune: {macs: 0.5, size: 0.5}}]\n", "one target, not macs and size"),
    "a target that is none": (ENTRY + "    steps: [{prune: {macs: 1.5}}]\n", "c.yaml:4: --macs must be above 0"),
    "a text for a number": (ENTRY + "    steps: [{prune: {macs: fast}}]\n", "models.0.steps.0.prune.macs: "),
    "a choice that is none": (ENTRY + "    steps: [{prune: {recover: all}}]\n", "models.0.steps.0.prune.recover: "),
    "a size that is none": (ENTRY + "    gates: {max_size: 10 parsecs}\n", "a size is bytes"),
    "gates without data": (
        ENTRY + "    gates: {fidelity: 0.5}\n",
        "c.yaml:4: the gate fidelity compares answers: give inputs",
    ),
    "a key twice": ("models: []\nmodels: []\n", "c.yaml:2: 'models' comes twice"),
    "a missing key": ("models:\n  - model: net.onnx\n", "models.0.outputs: this key is missing"),
    "code": ("models: !!python/object/apply:os.system ['touch pwned']\n", "this is no plain YAML"),
    "no YAML": ("models: [\n", "this is no plain YAML"),
    "another version": ("version: 2\n" + ENTRY, "c.yaml:1: version: "),
    "aliases without end": (
        "a: &a [x, x]\n"
        + "".join(f"{n}: &{n} [{', '.join(['*' + m] * 10)}]\n" for m, n in ("ab", "bc", "cd", "de", "ef", "fg")),
        "nested too deeply, or its aliases",
    ),
    "a variable that is not set": (
        ENTRY.replace("net.onnx", "${NIGHT}"),
        "c.yaml:2: the environment variable NIGHT is not set",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(place: Path, name: str) -> None:
    text, said = REFUSED[name]
    with pytest.raises(BadInputError) as refusal:
        config(text, place)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    done = CliRunner().invoke(main, ["run", str(place / "c.yaml")])
    assert done.exit_code == 2 and done.stderr.startswith("onnxprune: ") and done.stderr.count("\n") == 1
    assert not (place / "c.report.json").exists() and not (place / "pwned").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ENTRY + "  - model: net.onnx\n    outputs: {model: b.onnx}\n", "Two models are called 'net'"),
        (ENTRY + "  - model: net.onnx\n    name: b\n    outputs: {model: out.onnx}\n", "named twice"),
        (ENTRY.replace("out.onnx", "net.onnx"), "is an input"),
        (ENTRY + "report: net.onnx\n", "is an input"),
        (ENTRY.replace("out.onnx}", "out.onnx, report: x.pdf}"), "report x.pdf must end in"),
    ],
)
def test_files_that_would_be_lost(place: Path, text: str, said: str) -> None:
    (place / "c.yaml").write_text(text)
    with pytest.raises(BadInputError, match=said):
        onnxprune.run(place / "c.yaml")


def test_variables_and_overrides(place: Path) -> None:
    text = ENTRY + '    name: a\n    steps: [{prune: {macs: "${SHARE:-0.5}", metric: "$$x${A}"}}]\n'
    prune: Callable[[Config], Any] = lambda c: c.models[0].steps[0].prune  # noqa: E731
    with pytest.raises(BadInputError, match="variable A is not set"):
        config(text, place)
    with pytest.raises(BadInputError, match="--metric"):
        config(text, place, {"A": "1"})
    text = text.replace('"$$x${A}"', "kl")
    assert prune(config(text, place)).macs == 0.5
    assert prune(config(text, place, {"SHARE": "0.4"})).macs == 0.4
    assert prune(config(text, place, sets=("models.a.steps.0.prune.macs=0.3",))).macs == 0.3
    assert config(text, place, sets=("defaults.data=x.npz",)).models[0].data == "x.npz"
    for wrong in ("models.7.name=b", "models", "=x", "models.a.name.b=1"):
        with pytest.raises(BadInputError, match="--set"):
            config(text, place, sets=(wrong,))


def test_defaults_fill_gates_one_by_one(place: Path) -> None:
    text = "defaults: {data: a.npz, gates: {fidelity: 0.9, max_size: 50%}}\n" + ENTRY + "    gates: {fidelity: 0.8}\n"
    entry = config(text, place).models[0]
    assert (entry.data, entry.gates.fidelity, entry.gates.max_size) == ("a.npz", 0.8, "50%")


def test_every_option_of_prune_is_a_key() -> None:
    """A new option needs no second list."""
    keys = schema("config")["$defs"]["Prune"]["properties"]
    wanted = {f.name for f, told in options(Options, "prune") if told.cli is not None}
    assert wanted <= set(keys) and keys["macs"] and keys["threads"]
    assert all(keys[name].get("description") for name in wanted)


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_those_of_the_values(name: str) -> None:
    """After a change: python -m onnxprune.pipeline.schemas"""
    assert schema(name) == json.loads(json.dumps(generated(name)))
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_the_schema_takes_what_is_written(place: Path) -> None:
    validator = jsonschema.Draft202012Validator(schema("config"))
    validator.validate(yaml.safe_load(onnxprune.init(place / "net.onnx", place / "mine.yaml")))
    validator.validate(yaml.safe_load(NIGHTLY))
    assert list(validator.iter_errors({"models": [{"model": "a", "outputs": {"model": "b"}, "gates": {"max_drp": 1}}]}))
    printed = CliRunner().invoke(main, ["schema", "config"])
    assert json.loads(printed.stdout) == schema("config")
