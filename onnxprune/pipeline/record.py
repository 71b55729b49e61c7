"""What a run did, for machines (JSON, JUnit XML, annotations) and for people (Markdown)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from onnxprune.model.json_text import to_json
from onnxprune.model.typed_json import plain
from onnxprune.pipeline.gates import Gate

Status = Literal["passed", "up to date", "gate failed", "error"]


@dataclass(frozen=True)
class Numbers:
    """Before and after.

    bytes: of the files, external data included.
    macs: multiply-accumulates, where a prune step counted them.
    params: parameters, the same.
    latency_ms: median milliseconds a run, where they were measured.
    speedup: median of the rounds' ratios, and the interval that holds it with 95 %.
    """

    bytes: tuple[int, int]
    macs: tuple[int, int] | None = None
    params: tuple[int, int] | None = None
    latency_ms: tuple[float, float] | None = None
    speedup: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Ran:
    """One model of a run.

    name: what the config calls it.
    status: `passed`, `up to date` (nothing that goes in has changed), `gate failed` or `error`.
    exit_code: what the command would return for this model alone.
    line: what happened, in one sentence.
    config_line: of the model in the config; null where it is not known.
    gates: as they were judged.
    numbers: sizes and times; null where nothing was made.
    provenance: versions, and SHA-256 of the source, the data, the config and the plan.
    outputs: SHA-256 by file, of what was published.
    steps: what was done, in order, with the report of each step.
    seconds: of wall time.
    """

    name: str
    status: Status
    exit_code: int
    line: str
    config_line: int | None = None
    gates: tuple[Gate, ...] = ()
    numbers: Numbers | None = None
    provenance: dict[str, str] | None = None
    outputs: dict[str, str] | None = None
    steps: tuple[Any, ...] = ()
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True)
class RunReport:
    """What `onnxprune run` did.

    config: the file, as it was given.
    is_published: are the outputs in their places? Only if every model passed.
    exit_code: of the command.
    models: in the config's order.
    """

    config: str
    is_published: bool
    exit_code: int
    models: tuple[Ran, ...]

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON."""
        made: dict[str, Any] = plain(self)
        return made

    def to_json(self) -> str:
        """Indented JSON, as `onnxprune.report.schema("run-report")` describes it."""
        return to_json(self.to_dict())


# ---------------------------------------------------------------- for machines


def junit(report: RunReport) -> str:
    """JUnit XML: a suite for every model, a case for every gate and one for the run itself."""
    from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

    made = JUnitXml("onnxprune")
    for ran in report.models:
        suite = TestSuite(_printable(ran.name))
        whole = TestCase("run", classname=_printable(ran.name), time=round(ran.seconds, 3))
        if ran.status == "error":
            whole.result = [Error(_printable(ran.line), f"exit {ran.exit_code}")]
        suite.add_testcase(whole)
        for gate in ran.gates:
            case = TestCase(gate.name, classname=_printable(ran.name))
            if not gate.is_passed:
                case.result = [Failure(_printable(gate.line), "gate")]
            suite.add_testcase(case)
        made.add_testsuite(suite)
    made.update_statistics()
    text = made.tostring()
    return (text.decode() if isinstance(text, bytes) else text) + "\n"


def _printable(text: str) -> str:
    """Without control characters, which XML cannot hold."""
    return "".join(c if c.isprintable() else "?" for c in text)


def workflow_commands(report: RunReport) -> Iterator[str]:
    """GitHub's workflow commands: an error for every gate that failed, and for every model that could not be made."""
    for ran in report.models:
        if ran.is_good:
            continue
        lines = [g.line for g in ran.gates if not g.is_passed] or [ran.line]
        at = f",line={ran.config_line}" if ran.config_line else ""
        for line in lines:
            yield f"::error file={_property(report.config)}{at},title={_property(f'onnxprune: {ran.name}')}::{_data(line)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


# ---------------------------------------------------------------- for people


def summary(report: RunReport) -> str:
    """Markdown: one table of models, then the gates of each."""
    verdict = "published" if report.is_published else "nothing was published"
    rows = ["| model | status | bytes | MACs | ms per run | speedup |", "|---|---|---:|---:|---:|---:|"]
    for ran in report.models:
        n = ran.numbers
        cells = [
            _cell(ran.name),
            ran.status,
            _pair(n.bytes if n else None),
            _pair(n.macs if n else None),
            "" if n is None or n.latency_ms is None else f"{n.latency_ms[0]:.4g} → {n.latency_ms[1]:.4g}",
            "" if n is None or n.speedup is None else f"{n.speedup[0]:.3g} ({n.speedup[1]:.3g} to {n.speedup[2]:.3g})",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    text = [f"## onnxprune: {verdict}", "", *rows, ""]
    for ran in report.models:
        if not ran.is_good or ran.gates:
            text += [f"### {_cell(ran.name)}", ""]
            text += [] if ran.is_good else [f"{_cell(ran.line)}", ""]
            text += [f"- {'passed' if g.is_passed else '**failed**'}: {_cell(g.line)}" for g in ran.gates]
            text += [""] if ran.gates else []
    return "\n".join(text).rstrip() + "\n"


def _pair(pair: tuple[int, int] | None) -> str:
    return "" if pair is None else f"{pair[0]:,} → {pair[1]:,}"


def _cell(text: str) -> str:
    """Text that is no markup: names come from files."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
