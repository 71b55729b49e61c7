"""One run of fine-tuning: set out -> train -> judge. `api/finetune.py` is its door; this module needs PyTorch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import runtime
from onnxprune.api.finetune import FinetuneResult
from onnxprune.calibrate.damage import METRICS, Outputs, divergence
from onnxprune.calibrate.judging import Judged, judged_by
from onnxprune.calibrate.metric import load_score
from onnxprune.choose.finetune_options import FinetuneOptions
from onnxprune.cut.plan import Plan, PlanGroup
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds
from onnxprune.model.branches import showing
from onnxprune.model.loaded import LoadedModel, Model
from onnxprune.report.values import decided, not_judged
from onnxprune.runtime import Session
from onnxprune.runtime.values import as_arrays
from onnxprune.training import losses, torch
from onnxprune.training.augment import NONE, Augmentation, Mixture, augmented
from onnxprune.training.blocks import Pace, fitting, reconstruct
from onnxprune.training.check import check
from onnxprune.training.initialise import initialise
from onnxprune.training.loop import Checkpoint, Schedule, train
from onnxprune.training.network import Network
from onnxprune.training.objective import Feature, Objective, Removed, Target, candidates, features
from onnxprune.training.samples import Material, batches

MEMORY = 1 << 30  # bytes of intermediate results in one micro-batch
RATE, RATE_LOSS = 4e-3, 0.25  # the largest learning rate by default, and the loss from which on it is taken
REPAIRED_RATE = 4e-3  # in units of each weight's root mean square
BLOCK_BATCH = 24
BEARABLE = 0.25  # of what the student loses: so far noise may move the teacher's own answers
AMOUNTS = 4  # of noise that are tried, each half of the one before
DEAR = 1.2  # times as long with tensors inside: then more steps by the outputs alone are the better use of minutes
TIMED = 3  # parts of batches, of which the fastest counts
PORTION = 64  # samples per run when outputs are only compared


@dataclass(frozen=True)
class Cut:
    """What is known of how the student came out of the teacher.

    removed: positions that left each tensor, by axis. mixed: tensors whose units are others than the teacher's.
    at_ends: compare features at ends of blocks. by_minutes: none, where they make steps much dearer. judge: `--judge`.
    is_repaired: it was fitted to the teacher layer by layer, which large steps would undo: rates go by the size of each weight.
    """

    removed: Removed = field(default_factory=dict)
    mixed: Container[str] = frozenset()
    at_ends: bool = False
    by_minutes: bool = False
    judge: tuple[str, ...] = ()
    is_repaired: bool = False


class Tuning:
    """Everything that one run sets out before it trains."""

    def __init__(
        self,
        student: LoadedModel,
        teacher: LoadedModel | None,
        material: Callable[[Session], Material],
        *,
        cut: Cut,
        settings: FinetuneOptions,
        progress: Callable[[str], None],
        labels: frozenset[str] = frozenset(),
        run: str = "",
    ) -> None:
        self.settings, self.progress, self.student, self.labels = settings, progress, student, labels
        self.threads, self.cut, self.run = settings.threads or default_threads(), cut, run
        self.names = [v.name for v in runtime.graph_inputs(student.proto)]
        progress("check")
        given = material(Session(student, optimized=True, threads=self.threads))
        self.pool, self.training, self.held = given.pool, given.training, given.held
        self.network = Network(student)
        first = self._fed(self.pool.joined(self.pool.bundles(self.training, 4)[0]))
        self.error = check(self.network, first)
        self.micro = self._micro()
        self.judging = _judging(student, teacher, first, cut.judge)
        self.network.compared = self.judging.tensors
        self.objective, self.teacher = self._objective(teacher, first)
        is_plain = self.pool.joins and not any(self.pool.axes.values())  # samples are rows of every array
        self.augmentation = Augmentation() if settings.augment and is_plain else NONE
        self.judged = self._judged()
        self.shown = [self._fed(j) for j in self.judged]
        said = [self.teacher.run(f, self.judging.names) for f in self.shown] if self.teacher else []
        self.wanted = [self.judging.read(values) for values in said]
        if settings.metric in METRICS:
            raise BadInputError(
                f"--metric {settings.metric} compares with the original, as the loss does; leave it out, or give module:function."
            )
        self.score = load_score(settings.metric) if settings.metric else None
        if settings.from_scratch:
            initialise(
                self.network, self._fed(self.pool.joined(self.pool.bundles(self.training, PORTION)[0])), settings.seed
            )
        self.augmentation = replace(self.augmentation, noise=self._bearable(self.augmentation.noise))
        if cut.by_minutes and teacher is not None:
            self.objective, self.teacher = self._affordable(teacher)
        self.schedule = Schedule(
            settings.steps,
            settings.rate or (REPAIRED_RATE if cut.is_repaired else self._rate()),
            0.0 if cut.is_repaired else settings.decay,
            patience=settings.patience,
            minutes=settings.minutes,
            seed=settings.seed,
            is_relative=cut.is_repaired,
        )

    def blocks(self, pace: Pace) -> tuple[int, float]:
        """Train block by block (`training/blocks.py`): how many blocks are better for it; the held-out loss before."""
        found, before = self.objective.features, self._judge()
        if not found or self.teacher is None:
            return 0, before
        held = [self._said(self.pool.joined(b)) for b in self.pool.bundles(self.held[:PORTION], self._batch)]
        order = np.random.default_rng([self.settings.seed, 5]).permutation(self.training).tolist()
        training: list[Target] = []
        for bundle in self.pool.bundles(order, self._batch):
            training.append(self._said(self.pool.joined(bundle)))
            if fitting(found, [*held, *training]) < len(held) + len(training):
                training.pop()
                break
        if not training:
            return 0, before
        start = self.network.values()
        moved = reconstruct(self.network, self.objective, training, held, pace, self.progress)
        if self._judge() < before:
            return moved, before
        self.network.load(start)
        return 0, before

    def result(self) -> FinetuneResult:
        settings, network = self.settings, self.network
        order: dict[int, list[int]] = {}
        source = batches(self.pool, self.training, settings.batch, settings.seed)

        def prepare(step: int) -> list[Target]:
            while step not in order:  # steps are asked for in order, from the first one or from a checkpoint's
                k, indices = next(source)
                order[k] = indices
                order.pop(k - 64, None)
            return self._targets(step, order[step])

        saved = Checkpoint(Path(settings.checkpoint), self.run) if settings.checkpoint else None
        if self.score is not None and not np.isfinite(self._judge()):
            raise BadInputError(
                f"--metric {settings.metric} gives no finite number for the model that is to be trained."
            )
        trained = train(network, prepare, self._losses, self._judge, self.schedule, self.progress, saved)
        model = network.export() if trained.best_step or settings.from_scratch else self.student.proto
        constants = network.program.constants
        floats = [k for k in network.program.origins if constants[k].dtype.kind == "f" and constants[k].size > 16]
        return FinetuneResult(
            model=model,
            trained=trained,
            weights=len(network.weights),
            frozen=tuple(network.frozen()),
            kept_out=tuple(k for k in floats if k not in network.weights),
            opaque=tuple(f"{s.op} '{s.key}'" for s in network.opaque.values()),
            features=tuple(f.key for f in self.objective.features),
            training=len(self.training),
            held=len(self.held),
            error=self.error,
            source=self.student,
            is_scored=self.score is not None,
            judged_by=self.judging.tensors,
            not_judged=not_judged(self.judging),
            decided=decided(self.judging),
        )

    # ------------------------------------------------------------ set out

    def _rate(self) -> float:
        """A good start wants small steps: the rate grows with the root of the loss there."""
        loss = self._judge() if self.score is None else RATE_LOSS
        return RATE * float(np.clip(np.sqrt(max(loss, 0.0) / RATE_LOSS), 0.25, 1.0)) if np.isfinite(loss) else RATE

    def _bearable(self, noise: float) -> float:
        """So much noise, or a half, a quarter or an eighth of it, that the teacher's answers are about those that it gives without.

        What it says of more than it bears has little to do with what it says of the user's inputs, and the student would learn that.
        """
        if not noise or self.teacher is None or self.judging.decides:
            return noise
        far = self.judging.by_tensors(divergence)
        most = BEARABLE * far(self.wanted[:1], [self._answers()(self.shown[0])])
        for _ in range(AMOUNTS):
            rng = np.random.default_rng([self.settings.seed, 7])
            noisy = augmented(self.shown[0], rng, replace(NONE, noise=noise)).feeds
            said = self.judging.read(self.teacher.run(noisy, self.judging.names))
            if far(self.wanted[:1], [said]) <= most:
                return noise
            noise /= 2
        return 0.0

    def _affordable(self, teacher: LoadedModel) -> tuple[Objective, Session | None]:
        """What is compared, and the session that shows it: the tensors inside as well, where a step with them is not much dearer."""
        with_features = self.objective, self.teacher
        if not self.objective.features:
            return with_features
        seconds = self._seconds()
        self.objective, self.teacher = replace(self.objective, features=()), self._showing(teacher, [])
        return with_features if seconds < DEAR * self._seconds() else (self.objective, self.teacher)

    def _seconds(self) -> float:
        """Of one part of a batch: what the teacher says, forward and backward."""
        taken = []
        for step in range(TIMED):
            begin = time.perf_counter()
            for loss in self._losses(self._targets(step, self.training[: self.micro])):
                loss.backward()
            taken.append(time.perf_counter() - begin)
        for parameter in self.network.parameters.values():
            parameter.grad = None
        return min(taken)

    def _fed(self, feeds: Feeds) -> Feeds:
        return {n: feeds[n] for n in self.names}

    def _held(self, indices: list[int]) -> Feeds:
        return self._fed(self.pool.joined(indices))

    def _micro(self) -> int:
        """Samples that fit into memory at once; what the gradient keeps is about what the forward pass makes."""
        return max(1, min(self.settings.batch, MEMORY // max(self.network.bytes(self._held(self.held[:1])), 1)))

    def _showing(self, teacher: LoadedModel, keys: Sequence[str]) -> Session:
        """What is shown is not fused with what follows, so that every key costs time."""
        proto = showing(teacher.proto, [*keys, *self.judging.names, *self.judging.decides])
        return Session(teacher.beside(proto), optimized=True, threads=self.threads, what="the teacher")

    def _features(self, teacher: LoadedModel, feeds: Feeds) -> tuple[Feature, ...]:
        settings, cut = self.settings, self.cut
        keys = [k for k in candidates(self.network, teacher.proto) if k not in cut.mixed] if settings.features else []
        if not keys:
            return ()
        given, shown = self.judging.fed(feeds), self._showing(teacher, keys)
        return features(self.network, shown, feeds, given, cut.removed, settings.features, cut.at_ends)

    def _objective(self, teacher: LoadedModel | None, feeds: Feeds) -> tuple[Objective, Session | None]:
        settings = self.settings
        names = [o.name for o in self.student.proto.graph.output]
        distances: tuple[losses.Distance, ...] = ()
        found: tuple[Feature, ...] = ()
        session: Session | None = None
        if teacher is not None:
            found = self._features(teacher, feeds)
            session = self._showing(teacher, [f.key for f in found])
            session.run(feeds, [o.name for o in teacher.proto.graph.output])
            bundles = self.pool.bundles(self.training[:256], PORTION)
            judged = self.judging.tensors
            outputs = [session.answers(self._held(b), judged) for b in bundles]
            distances = tuple(losses.distances({n: [o[k] for o in outputs] for k, n in enumerate(judged)}))
        supervised = self._supervised(names) if settings.labels is not None else None
        if not distances and supervised is None:
            raise BadInputError("The teacher has no floating output to learn from; give --labels.")
        default = 0.0 if supervised is None else 1.0 if not distances else 0.5
        weight = default if settings.label_weight is None or not supervised or not distances else settings.label_weight
        return Objective(distances, supervised, found, settings.temperature, weight, settings.feature_weight), session

    def _supervised(self, names: list[str]) -> losses.Supervised:
        indices = self.pool.bundles(self.training, PORTION)
        joined = self.pool.joined(indices[0])
        labels = {n: a for n, a in joined.items() if n in self.labels}
        with torch.no_grad():
            outputs = self.network(self._fed(joined))
        found = losses.supervised({n: outputs[n].numpy() for n in names}, labels)
        return found

    # ------------------------------------------------------------ each step

    def _targets(self, step: int, indices: list[int]) -> list[Target]:
        """The parts of a batch, with what the teacher says of them. A function of seed and step."""
        rng = np.random.default_rng([self.settings.seed, 4, step])
        parts = self.pool.bundles(indices, self.micro)
        return [self._target(self.pool.joined(b), len(b) / len(indices), rng) for b in parts]

    def _target(self, joined: Feeds, weight: float, rng: np.random.Generator) -> Target:
        supervised = self.objective.supervised
        labels = joined[supervised.labels] if supervised else None
        is_dense = supervised is not None and supervised.is_dense(joined[supervised.labels])
        mixture = augmented(self._fed(joined), rng, NONE if is_dense else self.augmentation)
        return self._of(mixture, labels, weight)

    def _said(self, joined: Feeds) -> Target:
        """Samples as they are, with what the teacher says of them; they weigh as much as they are."""
        rows = max((joined[n].shape[axis] for n, axis in self.pool.axes.items() if joined[n].ndim), default=1)
        whole = Mixture(self._fed(joined), np.arange(rows), np.ones(rows, np.float32))
        return self._of(whole, None, float(rows))

    def _of(self, mixture: Mixture, labels: Array | None, weight: float) -> Target:
        said: dict[str, Any] = {}
        feeds = mixture.feeds
        if self.teacher is not None:
            keys = [d.name for d in self.objective.distances] + [f.key for f in self.objective.features]
            names = list(dict.fromkeys((*keys, *self.judging.decides)))
            found = dict(zip(names, self.teacher.run(feeds, names), strict=True))
            feeds = feeds | {k: np.array(found[k]) for k in self.judging.decides}
            values = dict(zip(keys, as_arrays([found[k] for k in keys]), strict=True))
            values |= {f.key: f.of_teacher(values[f.key]) for f in self.objective.features}
            said = {k: torch.from_numpy(np.array(v, np.float32, order="C")) for k, v in values.items()}
        return Target(
            feeds=feeds,
            teacher=said,
            labels=None if labels is None else torch.from_numpy(_plain(labels)),
            other=torch.from_numpy(mixture.other),
            share=torch.from_numpy(mixture.share),
            weight=weight,
        )

    @property
    def _batch(self) -> int:
        """Samples in a batch of one block."""
        return min(self.micro, self.settings.batch, BLOCK_BATCH)

    def _losses(self, targets: list[Target]) -> Any:
        keys = [f.key for f in self.objective.features] + [d.name for d in self.objective.distances]
        for target in targets:
            yield self.objective(target, self.network(target.feeds, keys))

    def _judged(self) -> list[Feeds]:
        """Held-out samples, labels included; with labels, also shifted and disturbed: data for fine-tuning is mostly what the original
        was trained on, whose labels it knows by heart, so that on the samples as they are nothing can do better than it.
        """
        plain = [self.pool.joined(b) for b in self.pool.bundles(self.held, PORTION)]
        if self.objective.supervised is None or not self.augmentation.is_on or self.settings.metric:
            return plain
        rng = np.random.default_rng([self.settings.seed, 3])
        whole = replace(self.augmentation, mix=0.0, patch=0.0)  # what a sample is labelled with stays true
        return plain + [{**j, **augmented(self._fed(j), rng, whole).feeds} for j in plain]

    def _answers(self) -> Callable[[Feeds], list[Array]]:
        """What the network as it is gives, in ONNX Runtime."""
        return self.judging.session(self.student.beside(self.network.export()), threads=self.threads)

    def _judge(self) -> float:
        """The held-out loss of the network as it is, in ONNX Runtime; a score of the user's counts negative."""
        answers = self._answers()
        found = [answers(f) for f in self.shown]
        if self.score is not None:
            score = _scored(self.score, self.judging.outputs, self.judging.of_outputs(found), self.judged)
            return -score if np.isfinite(score) else np.inf
        labels = [_plain(j[self.objective.supervised.labels]) for j in self.judged] if self.objective.supervised else []
        return self.objective.held_out(self.wanted, found, self.judging, labels)


def _judging(student: Model, teacher: Model | None, feeds: Feeds, judge: tuple[str, ...]) -> Judged:
    """What the student is judged by; where values decide sizes, they are the teacher's in both. judge: `--judge`."""
    leads = teacher is not None
    lead = judged_by(teacher or student, lambda name: False, leads=leads)
    fits = partial(_is_alike, student, teacher or student, lead, feeds)
    return judged_by(teacher or student, fits, judge, leads=leads)


def _is_alike(student: Model, teacher: Model, lead: Judged, feeds: Feeds, name: str) -> bool:
    """Is a tensor there, and of one size, in both?"""
    given = lead.fed(feeds)
    try:
        shown = [m.beside(showing(lead.led(m.proto), [name])) for m in (student, teacher)]
        sizes = [Session(m).run(given, [name])[0].shape for m in shown]
    except BadInputError:
        return False
    return sizes[0] == sizes[1]


def _scored(score: Any, names: Sequence[str], found: Outputs, joined: list[Feeds]) -> float:
    outputs = {n: np.concatenate([f[k] for f in found]) for k, n in enumerate(names)}
    data = {n: np.concatenate([j[n] for j in joined]) if joined[0][n].ndim else joined[0][n] for n in joined[0]}
    try:
        return float(score(outputs, data))
    except Exception as error:  # the user's code may raise anything
        raise BadInputError(f"--metric failed: {type(error).__name__}: {error}.") from None


def cut_of(plan: str | Path | None) -> Cut:
    """By a plan that may have been given."""
    read = None if plan is None else _read_plan(plan)
    return Cut() if read is None else Cut(removed_by(read.groups), frozenset(read.mixed))


def _read_plan(plan: str | Path) -> Plan:
    try:
        text = Path(plan).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise BadInputError(f"The plan {plan} cannot be read.") from None
    return Plan.from_json(text, f"The plan {plan}")


def removed_by(groups: Sequence[PlanGroup]) -> Removed:
    """Positions that left each tensor of the original, by axis."""
    found: dict[str, dict[int, set[int]]] = {}
    for group in groups:
        for member in group.members:
            if member.node is None:
                found.setdefault(member.tensor, {}).setdefault(member.axis, set()).update(member.removed)
    return {name: [(a, sorted(gone)) for a, gone in axes.items()] for name, axes in found.items()}


def _plain(labels: Array) -> Array:
    """Of a type that PyTorch has."""
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels.astype(np.float32)


def default_threads() -> int:
    return max(1, (os.cpu_count() or 2) // 2)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many of PyTorch's; as before behind it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or default_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
