"""The steps of a run, one after the other, each by the function that the command of the same name calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from onnxprune import runtime
from onnxprune.analyse.feeds import load_data, samples_of
from onnxprune.analyse.observe import feeds_of
from onnxprune.analyse.scope import Scope
from onnxprune.api.finetune import finetune
from onnxprune.api.prune import PruneResult, prune
from onnxprune.api.sparsify import SparsifyResult, sparsify
from onnxprune.choose.budget import TARGETS, Budget
from onnxprune.choose.job_options import JobOptions
from onnxprune.choose.place import Place
from onnxprune.clock import Progress, prefixed
from onnxprune.cut.plan import Plan
from onnxprune.errors import BadInputError, OnnxPruneError
from onnxprune.model.load import load
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.save import save_result
from onnxprune.pipeline.config import Entry, Step
from onnxprune.proof.elsewhere import Stopwatch
from onnxprune.report.renderer import AnyReport
from onnxprune.report.values import Latency

FILES = ("data", "labels", "plan", "checkpoint")
"""Options of steps that are paths; relative ones are meant from the config's folder."""

KEY = "onnxprune"
"""Of the entry in a model's metadata that says where it comes from."""


@dataclass
class Made:
    """What the steps have made so far. path: of the model. steps: what was done, with the report of each, as JSON has it."""

    path: Path
    plan: Plan | None = None
    report: AnyReport | None = None
    latency: Latency | None = None
    macs: tuple[int, int] | None = None
    params: tuple[int, int] | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)


class Steps:
    """Carries out the steps of one model. folder: that of the config. stage: where models between steps may lie. where: the work of prune
    steps is done that do not say it themselves.
    """

    def __init__(
        self, entry: Entry, original: LoadedModel, folder: Path, stage: Path, progress: Progress, where: JobOptions
    ) -> None:
        self.entry, self.original, self.folder, self.stage = entry, original, folder, stage
        self.progress = progress
        self.where = {name: value for name, value in vars(where).items() if value is not None}
        self.place: dict[str, Any] = {} if entry.timing is None else entry.timing.given()
        self.data = None if entry.data is None else folder / entry.data
        self.shapes: dict[str, Any] = {}
        assert original.path is not None
        self.made = Made(original.path)

    def __call__(self) -> Made:
        steps = self.entry.steps or [Step(prune={})]
        for k, step in enumerate(steps):
            with self._named(k, step):
                self._do(step, last=k == len(steps) - 1, to=self.stage / f"{k}" / "model.onnx")
        return self.made

    @contextmanager
    def _named(self, k: int, step: Step) -> Iterator[None]:
        """Errors say which step it was, where there are several."""
        try:
            yield
        except OnnxPruneError as problem:
            if len(self.entry.steps) > 1:
                problem.args = (f"step {k + 1} ({step.kind}): {problem}",)
            raise

    def _do(self, step: Step, last: bool, to: Path) -> None:
        given = self._resolved(step)
        told: Progress = lambda text: self.progress(prefixed(f"{step.kind}: ", text))  # noqa: E731
        how: dict[str, Callable[..., dict[str, Any]]] = {
            "prune": self._prune,
            "sparsify": self._sparsify,
            "tune": self._tune,
            "quantize": self._quantize,
        }
        report = how[step.kind](given, last, to, told)
        self.made.path = to
        self.made.steps.append({"step": step.kind, "report": report})

    def _resolved(self, step: Step) -> dict[str, Any]:
        """The step's options with paths from the config's folder, the model's data, and where models are timed."""
        given = {k: v for k, v in step.options.given().items() if v is not None}
        for name in FILES:
            if name in given and (name != "labels" or (self.folder / given[name]).exists()):
                given[name] = self.folder / given[name]
        if "custom_ops" in given:
            listed = [given["custom_ops"]] if isinstance(given["custom_ops"], str) else given["custom_ops"]
            given["custom_ops"] = tuple(self.folder / p for p in listed)
        if self.data is not None:
            given.setdefault("data", self.data)
        if step.kind in ("prune", "sparsify"):
            given = self.place | given
        if step.kind == "prune":
            given = self._placed(given) | given
        self.shapes = given.get("input_shapes", self.shapes)
        return given

    def _placed(self, given: dict[str, Any]) -> dict[str, Any]:
        """Where the work of a step is done, as far as it does not say so."""
        own = {"jobs", "cluster"} if {"jobs", "cluster"} & {*given} else set()  # these exclude each other
        return {name: value for name, value in self.where.items() if name not in own}

    def _prune(self, given: dict[str, Any], last: bool, to: Path, told: Progress) -> dict[str, Any]:
        targets = {name: given.pop(name) for name in TARGETS if name in given}
        budget = next((Budget(name, amount) for name, amount in targets.items()), None)
        result = prune(self.made.path, budget, output=to, progress=told, benchmark=last, **given)
        made, cost = self.made, result.report.cost
        made.plan = result.plan
        self._counted(result)
        if cost.macs is not None and cost.params is not None:
            made.macs = (made.macs[0] if made.macs else cost.macs.before, cost.macs.after)
            made.params = (made.params[0] if made.params else cost.params.before, cost.params.after)
        return result.report.to_dict()

    def _sparsify(self, given: dict[str, Any], last: bool, to: Path, told: Progress) -> dict[str, Any]:
        result = sparsify(self.made.path, output=to, progress=told, benchmark=last, **given)
        self._counted(result)
        return result.report.to_dict()

    def _counted(self, result: PruneResult | SparsifyResult) -> None:
        """The report, and the times where they are against the original."""
        self.made.report = result.report
        self.made.latency = result.report.latency_ms if self.made.path == self.original.path else None

    def _tune(self, given: dict[str, Any], last: bool, to: Path, told: Progress) -> dict[str, Any]:
        data = self._data_of("tune", given)
        result = finetune(self.made.path, self.original.path, data=data, output=to, progress=told, **given)
        self.made.latency = None
        return {"lines": [list(line) for line in result.lines()]}

    def _quantize(self, given: dict[str, Any], last: bool, to: Path, told: Progress) -> dict[str, Any]:
        data, limit = self._data_of("quantize", given), given.get("samples")
        told("quantize")
        model = load(self.made.path)
        inputs = runtime.graph_inputs(model.proto)
        samples = samples_of(load_data(data, inputs), inputs, limit, model=runtime.Session(model))
        save_result(runtime.quantize(model, samples.feeds, "the model"), to, model)
        self.made.latency = None
        return {"samples": samples.count}

    def _data_of(self, kind: str, given: dict[str, Any]) -> Path:
        data = given.pop("data", None)
        if data is None:
            raise BadInputError(f"A {kind} step needs inputs: give the model 'data:'.")
        return Path(data)

    # -- the end

    def latency(self, finished: LoadedModel) -> Latency:
        """Both models in turn, where the last step has not timed them."""
        if self.made.latency is not None:
            return self.made.latency
        self.progress("benchmark")
        place = Place(**self.place)
        watch = Stopwatch(place.made(), place.batch, place.warmup)
        feeds = feeds_of(self.original, Scope(input_shapes=self.shapes, data=self.data))[0]
        return Latency.of(watch.timed((self.original, finished), feeds))


def with_provenance(proto: onnx.ModelProto, provenance: dict[str, str]) -> onnx.ModelProto:
    """A copy with an entry of metadata that says where it comes from: JSON, the same for the same inputs."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    kept = [(p.key, p.value) for p in made.metadata_props if p.key != KEY]
    del made.metadata_props[:]
    for key, value in [*kept, (KEY, json.dumps(provenance, sort_keys=True))]:
        made.metadata_props.add(key=key, value=value)
    return made
