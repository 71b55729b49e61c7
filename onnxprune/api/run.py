"""`onnxprune run`: one file says it all. read -> (nothing changed?) -> steps -> gates -> publish, or say why not.

onnxprune.run("prune.yaml")
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from onnxprune.api.steps import Made, Steps, with_provenance
from onnxprune.choose.field import checked
from onnxprune.choose.job_options import JobOptions
from onnxprune.clock import Progress, prefixed, silent
from onnxprune.errors import BadInputError, OnnxPruneError, VerificationError
from onnxprune.jobs import Checkpoint, check_place
from onnxprune.model.files import check_outputs, staged
from onnxprune.model.load import load
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.save import save_result
from onnxprune.pipeline import stamp as stamps
from onnxprune.pipeline.config import Config, Entry, config_of, contents, named
from onnxprune.pipeline.gates import judge_gates
from onnxprune.pipeline.reading import read
from onnxprune.pipeline.record import Numbers, Ran, RunReport, junit, summary
from onnxprune.report.renderer import renderer_for

FAILED = VerificationError.exit_code
"""What a gate that does not hold exits with."""


@dataclass
class _Publish:
    """Files of one model that wait for all gates: from where, to where; and texts."""

    moves: list[tuple[Path, Path]] = field(default_factory=list)
    texts: dict[Path, str] = field(default_factory=dict)


def run(
    config: str | PathLike[str],
    *,
    sets: Sequence[str] = (),
    force: bool = False,
    progress: Progress = silent,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> RunReport:
    """Carry out a config: make all models, judge their gates, and publish them if every gate of every model holds.

    sets: overrides such as `models.0.steps.0.prune.macs=0.4`. force: make also what has not changed. environment: variables for `${NAME}`
    in the config; by default those of the process. options: the fields of `JobOptions`, for all prune steps that do not say it themselves;
    nothing is made anew because of them. The report of the run, and JUnit XML and a summary where they are asked for,
    are written whatever came out; `exit_code` says what the command returns. Raises `BadInputError` for a config that cannot be read.
    """
    where = checked(JobOptions, options, "run")
    check_place(where.jobs, where.cluster)
    if where.checkpoint is not None:
        Checkpoint(where.checkpoint)
    path = Path(config)
    document = read(path, sets, os.environ if environment is None else environment)
    plan = config_of(document)
    names = named(plan)
    files = _Files(path, plan)
    files.check()
    with ExitStack() as stack:
        found: list[Ran] = []
        waiting: list[_Publish] = []
        for k, (name, entry) in enumerate(zip(names, plan.models, strict=True)):
            told: Progress = lambda text, name=name: progress(prefixed(f"{name}: ", text))  # type: ignore[misc]  # noqa: E731
            one = _One(name, entry, files, stack, told, where)
            start = time.perf_counter()
            try:
                ran, publish = one.up_to_date(force) or one.made()
            except OnnxPruneError as problem:
                ran, publish = Ran(name, "error", problem.exit_code, str(problem)), _Publish()
            line = document.lines.get(("models", k))
            found.append(replace(ran, config_line=line, seconds=round(time.perf_counter() - start, 3)))
            waiting.append(publish)
        good = all(r.is_good for r in found)
        if good:
            found = [_published(r, p) for r, p in zip(found, waiting, strict=True)]
        bad = [r.exit_code for r in found if not r.is_good]
        code = 0 if good else FAILED if FAILED in bad else bad[0]
        report = RunReport(str(config), good, code, tuple(found))
    with staged(files.of_run(report)):
        pass
    return report


class _Files:
    """All that a run reads and writes. folder: of the config, from which relative paths are meant."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config, self.folder = path, config, path.parent
        self.report = self.folder / (config.report or f"{path.stem}.report.json")

    def check(self) -> None:
        """Raise `BadInputError` where an output cannot be written, is named twice, or is an input; and for formats that are none."""
        outputs: dict[str, Path] = {"report": self.report}
        inputs: list[Path] = [self.path]
        for name in ("junit", "summary"):
            if (given := getattr(self.config, name)) is not None:
                outputs[name] = self.folder / given
        for k, entry in enumerate(self.config.models):
            inputs += [self.folder / entry.model, *self.data_of(entry)]
            for place in self.outputs_of(entry):
                outputs[f"models.{k}.outputs ({len(outputs)}):"] = place
            for report in entry.outputs.reports:
                try:
                    renderer_for(report)
                except BadInputError as problem:
                    raise BadInputError(f"{self.path}: models.{k}.outputs: {str(problem).removeprefix('--')}") from None
        check_outputs(outputs, inputs)

    def outputs_of(self, entry: Entry) -> list[Path]:
        """The model first."""
        out = entry.outputs
        return [self.folder / p for p in (out.model, *([out.plan] if out.plan else []), *out.reports)]

    def data_of(self, entry: Entry) -> list[Path]:
        """Files beside the model that the result depends on."""
        named = [entry.data, entry.gates.data]
        for step in entry.steps:
            given = step.options.given()
            named += [given.get(n) for n in ("data", "labels", "plan")]
            ops = given.get("custom_ops") or ()
            named += [ops] if isinstance(ops, str) else list(ops)
        found = (self.folder / p for p in dict.fromkeys(named) if p)
        return [p for p in found if p.exists()]

    def of_run(self, report: RunReport) -> dict[Path, str]:
        texts = {self.report: report.to_json()}
        if self.config.junit is not None:
            texts[self.folder / self.config.junit] = junit(report)
        if self.config.summary is not None:
            texts[self.folder / self.config.summary] = summary(report)
        return texts


class _One:
    """One model of a run."""

    def __init__(
        self, name: str, entry: Entry, files: _Files, stack: ExitStack, progress: Progress, where: JobOptions
    ) -> None:
        self.name, self.entry, self.files, self.stack, self.progress = name, entry, files, stack, progress
        self.where = where
        self.folder = files.folder
        self.output = self.folder / entry.outputs.model
        progress("load")
        self.original: LoadedModel | None = None
        self.provenance: dict[str, str] = {}

    def up_to_date(self, force: bool) -> tuple[Ran, _Publish] | None:
        """Nothing is to be done where nothing changed. Also finds out what the result is made from."""
        self.original = load(self.folder / self.entry.model)
        data, metrics = self.files.data_of(self.entry), self._metrics()
        self.provenance = stamps.versions() | {
            "source_sha256": stamps.of_model(self.original),
            "config_sha256": stamps.of_value(contents(self.entry)),
            **({"data_sha256": stamps.of_files(data)} if data else {}),
            **({"metric_sha256": stamps.of_value([*map(stamps.of_metric, metrics)])} if metrics else {}),
        }
        known = stamps.read_stamp(self.output)
        current = stamps.is_current(known, self.provenance, self.files.outputs_of(self.entry), self.output.parent)
        if force or not current:
            return None
        assert known is not None
        line = "up to date: model, data, metrics, config and versions are those of the last run (--force makes it anew)"
        ran = Ran(self.name, "up to date", 0, line, provenance=self.provenance, outputs=known.outputs)
        return ran, _Publish()

    def _metrics(self) -> list[str]:
        """Those of the user's own that steps and gates judge by."""
        given = [step.options.given().get("metric") for step in self.entry.steps]
        return sorted({m for m in (*given, self.entry.gates.metric) if m and ":" in m})

    def made(self) -> tuple[Ran, _Publish]:
        """The steps, the gates, and what waits for being published."""
        assert self.original is not None
        stage = Path(self.stack.enter_context(_beside(self.output)))
        steps = Steps(self.entry, self.original, self.folder, stage, self.progress, self.where)
        made = steps()
        provenance = dict(self.provenance)
        if made.plan is not None:
            provenance["plan_sha256"] = stamps.of_value(made.plan.to_json())
        last = load(made.path)
        place = stage / "finished" / self.output.name
        save_result(with_provenance(last.proto, provenance), place, last)
        finished = load(place)
        gates, numbers = self._judged(steps, made, finished)
        failed = [g for g in gates if not g.is_passed]
        hold = "the gate holds" if len(gates) == 1 else f"all {len(gates)} gates hold"
        line = "; ".join(g.line for g in failed) or (hold if gates else "done; no gates are set")
        ran = Ran(
            self.name,
            "gate failed" if failed else "passed",
            FAILED if failed else 0,
            line,
            gates=gates,
            numbers=numbers,
            provenance=provenance,
            steps=tuple(made.steps),
        )
        return ran, self._waiting(made, place, finished)

    def _judged(self, steps: Steps, made: Made, finished: LoadedModel) -> tuple[Any, Numbers]:
        assert self.original is not None
        gates = self.entry.gates
        latency = steps.latency(finished) if gates.is_timed else made.latency
        data = gates.data or self.entry.data
        self.progress("gates")
        sizes = (self.original.size_bytes, finished.size_bytes)
        found = judge_gates(
            gates,
            self.original,
            finished,
            sizes=sizes,
            latency=latency,
            data=None if data is None else self.folder / data,
        )
        speed = None if latency is None else (latency.speedup, *latency.interval)
        ms = None if latency is None else (latency.before, latency.after)
        return found, Numbers(sizes, made.macs, made.params, ms, speed)

    def _waiting(self, made: Made, place: Path, finished: LoadedModel) -> _Publish:
        """Files and texts, and where they go. Raises `BadInputError` where weights of the original would be overwritten."""
        assert self.original is not None
        found = _Publish()
        for data in sorted(finished.data_files):
            target = self.output.with_name(data.name)
            if target.resolve() in {p.resolve() for p in self.original.data_files}:
                raise BadInputError(
                    f"outputs: {target} holds weights of the original; choose another name for the model."
                )
            found.moves.append((data, target))
        found.moves.append((place, self.output))
        out = self.entry.outputs
        if out.plan is not None:
            if made.plan is None:
                raise BadInputError("outputs: a plan is what a prune step makes, and there is none; leave 'plan' out.")
            found.texts[self.folder / out.plan] = made.plan.to_json()
        for name in out.reports:
            if made.report is None:
                raise BadInputError(
                    "outputs: a report is of a prune or sparsify step, and there is none; leave 'report' out."
                )
            found.texts[self.folder / name] = renderer_for(name).render(made.report)
        return found


def _published(ran: Ran, publish: _Publish) -> Ran:
    """Everything of a model in its place, and what that is. An old model is taken away before the data that it would read are replaced."""
    if not publish.moves:
        return ran
    model = publish.moves[-1][1]
    with staged(publish.texts):
        model.parent.mkdir(parents=True, exist_ok=True)
        stamps.place_of(model).unlink(missing_ok=True)
        if len(publish.moves) > 1:
            model.unlink(missing_ok=True)
        for source, target in publish.moves:
            os.replace(source, target)
    wrote = [target for _, target in publish.moves] + list(publish.texts)
    outputs = {stamps.relative(p, model.parent): stamps.of_file(p) for p in wrote}
    inputs = {k: v for k, v in (ran.provenance or {}).items() if k != "plan_sha256"}
    with staged({stamps.place_of(model): stamps.Stamp(inputs, outputs).to_json()}):
        pass
    return replace(ran, outputs=outputs)


@contextmanager
def _beside(output: Path) -> Iterator[str]:
    """A folder on the output's disk, which is gone afterwards."""
    parent = next(p for p in (output.parent, *output.parent.parents) if p.is_dir())
    place = tempfile.mkdtemp(prefix=".onnxprune-", dir=parent)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
