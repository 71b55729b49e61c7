"""Fine-tuning an ONNX file without its training code, on one page: load -> check -> set out -> train -> judge -> write.

    finetune("small.onnx", "original.onnx", data="inputs.npz", output="tuned.onnx")

The pruned graph itself is trained (`training/network.py`); only numbers of its weights change. By default no labels are needed: the
original is the teacher, and it labels whatever the student is shown.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.analyse.feeds import load_data, merged, read_arrays
from onnxprune.calibrate.damage import METRICS
from onnxprune.calibrate.metric import load_score
from onnxprune.cut.plan import Plan
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array, Feeds, batch_of
from onnxprune.model.files import check_outputs
from onnxprune.model.load import load
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.save import save_model
from onnxprune.runtime import Session
from onnxprune.training import losses, torch
from onnxprune.training.augment import NONE, Augmentation, augmented
from onnxprune.training.check import check
from onnxprune.training.initialise import initialise
from onnxprune.training.loop import Checkpoint, Schedule, Trained, train
from onnxprune.training.network import Frozen, Network
from onnxprune.training.objective import Objective, Target, candidates, features, with_outputs
from onnxprune.training.samples import Pool, batches, pool, split

Source: TypeAlias = str | PathLike[str] | onnx.ModelProto
MEMORY = 1 << 30  # bytes of intermediate results in one micro-batch
RATE, RATE_LOSS = 4e-3, 0.25  # the largest learning rate by default, and the loss from which on it is taken
PORTION = 64  # samples per run when outputs are only compared


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune; `onnxprune finetune --help` says what each is. labels: a file, or the name of an array of the data.

    metric: `module:function` to judge held-out samples by, instead of the loss. threads: of each of the two things that
    run at once, student and teacher; None takes half the cores.
    """

    labels: str | Path | None = None
    plan: str | Path | None = None
    from_scratch: bool = False
    steps: int = 3000
    minutes: float | None = None
    batch: int = 64
    rate: float | None = None
    decay: float = 1e-2
    temperature: float = 2.0
    label_weight: float | None = None
    features: int = 0
    feature_weight: float = 0.1
    augment: bool = True
    patience: int = 8
    samples: int | None = None
    metric: str | None = None
    checkpoint: str | Path | None = None
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class FinetuneResult:
    """model: the best state by held-out samples, the unchanged start where nothing was better. frozen: weights without a gradient."""

    model: onnx.ModelProto
    trained: Trained
    weights: int
    frozen: tuple[Frozen, ...]
    kept_out: tuple[str, ...]
    opaque: tuple[str, ...]
    features: tuple[str, ...]
    training: int
    held: int
    error: float
    source: LoadedModel = field(repr=False)
    is_scored: bool = False  # by the user's metric, larger is better, instead of a loss
    spared: frozenset[Path] = field(default=frozenset(), repr=False)  # data files of the teacher

    @property
    def is_improved(self) -> bool:
        return self.trained.after < self.trained.before

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model atomically, with external data if the pruned file had it."""
        source = self.source
        spared = source.data_files | self.spared
        save_model(source.beside(self.model), Path(path), apart=source.has_external_data, spared=spared)

    def lines(self) -> list[tuple[str, str]]:
        """What a person should know, as (heading, text)."""
        t = self.trained
        rows = [("checked", f"PyTorch equals ONNX Runtime to {self.error:.1e} of the output's scale")]
        rows.append(
            (
                "trained",
                f"{self.weights - len(self.frozen)} of {self.weights} weights, {self.training} samples, {self.held} held out",
            )
        )
        rows += [("frozen", f"{f.key}: no gradient passes {', '.join(f.nodes[:3])}") for f in self.frozen[:5]]
        if len(self.frozen) > 5:
            rows.append(("frozen", f"and {len(self.frozen) - 5} more"))
        if self.kept_out:
            rows.append(
                ("left", f"{len(self.kept_out)} float constants that are no weights alone, like '{self.kept_out[0]}'")
            )
        if self.opaque:
            rows.append(("runtime", f"without gradients in ONNX Runtime: {', '.join(self.opaque[:5])}"))
        if self.features:
            rows.append(("features", f"{len(self.features)} compared, like '{self.features[0]}'"))
        rows.append(("stopped", f"{t.stopped}: step {t.steps}, best at {t.best_step}, {t.seconds:.0f} s"))
        before, after = (-t.before, -t.after) if self.is_scored else (t.before, t.after)
        verdict = f"{before:.4g} -> {after:.4g}" if self.is_improved else f"{before:.4g}: nothing was better, unchanged"
        return [*rows, ("score" if self.is_scored else "held-out", verdict)]


def finetune(
    pruned: Source,
    teacher: Source | None = None,
    *,
    data: str | Path | list[Feeds],
    output: str | PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> FinetuneResult:
    """Train the weights of `pruned` towards `teacher`'s outputs on unlabelled `data`, towards labels, or both.

    data: as for `prune` (a file, a folder, or feeds). output: written at the end, whole or not at all. options: the fields of
    `FinetuneOptions`. Raises `BadInputError`, also where the graph cannot be evaluated in PyTorch.
    """
    settings = _options(options)
    files = {"-o": output, "--checkpoint": settings.checkpoint}
    check_outputs(files, (pruned, teacher, data, settings.labels, settings.plan))
    progress("load")
    student = load(pruned)
    original = None if teacher is None else load(teacher)
    spared = student.data_files | (original.data_files if original else frozenset())
    check_outputs(files, spared)
    if original is None and settings.labels is None:
        raise BadInputError("Give --teacher (the original model), --labels, or both: there is nothing to learn from.")
    if settings.features and original is None:
        raise BadInputError("--features are compared with those of --teacher; give it, or leave them out.")
    if settings.from_scratch and settings.labels is None:
        raise BadInputError("--from-scratch is trained with labels; give --labels.")
    feeds, labels = _data(student, data, settings)
    if original is not None:
        _same_interface(student.proto, original.proto)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or _threads())
    try:
        result = _Run(student, original, feeds, labels, data, settings, progress).result()
        result = replace(result, spared=spared)
    finally:
        torch.set_num_threads(before)
    if output is not None:
        progress("write")
        result.save(output)
    return result


# ---------------------------------------------------------------- one run


class _Run:
    """Everything that one run sets out before it trains."""

    def __init__(
        self,
        student: LoadedModel,
        teacher: LoadedModel | None,
        feeds: list[Feeds],
        labels: frozenset[str],
        data: object,
        settings: FinetuneOptions,
        progress: Callable[[str], None],
    ) -> None:
        self.settings, self.progress, self.student, self.labels = settings, progress, student, labels
        self.threads = settings.threads or _threads()
        self.plan = None if settings.plan is None else _read_plan(settings.plan)
        self.inputs = runtime.graph_inputs(student.proto)
        self.names = [v.name for v in self.inputs]
        progress("check")
        session = Session(student, optimized=True, threads=self.threads)
        self.pool: Pool = pool(feeds, self.inputs, session.accepts)
        if len(self.pool.units) < 2:
            raise BadInputError(
                "Fine-tuning needs at least two samples, to train on one and judge by another; give more --data."
            )
        self.training, self.held = split(len(self.pool.units), settings.seed)
        self.network = Network(student)
        first = self._fed(self.pool.joined(self.pool.bundles(self.training, 4)[0]))
        self.error = check(self.network, first)
        self.micro = self._micro()
        self.teacher = self._teacher(teacher, first)
        self.objective = self._objective(first)
        self.augmentation = Augmentation() if settings.augment and self.pool.joins else NONE
        self.judged = self._judged()
        self.wanted = [self.teacher.run(self._fed(j), session.outputs) for j in self.judged] if self.teacher else []
        if settings.metric in METRICS:
            raise BadInputError(
                f"--metric {settings.metric} compares with the original, as the loss does; leave it out, or give module:function."
            )
        self.score = load_score(settings.metric) if settings.metric else None
        if settings.from_scratch:
            initialise(
                self.network, self._fed(self.pool.joined(self.pool.bundles(self.training, PORTION)[0])), settings.seed
            )
        self.schedule = Schedule(
            settings.steps,
            settings.rate or self._rate(),
            settings.decay,
            patience=settings.patience,
            minutes=settings.minutes,
            seed=settings.seed,
        )
        self.run = _fingerprint(student, teacher, data, settings)

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
        )

    # ------------------------------------------------------------ set out

    def _rate(self) -> float:
        """A good start wants small steps: the rate grows with the root of the loss there."""
        loss = self._judge() if self.score is None else RATE_LOSS
        return RATE * float(np.clip(np.sqrt(max(loss, 0.0) / RATE_LOSS), 0.25, 1.0)) if np.isfinite(loss) else RATE

    def _fed(self, feeds: Feeds) -> Feeds:
        return {n: feeds[n] for n in self.names}

    def _held(self, indices: list[int]) -> Feeds:
        return self._fed(self.pool.joined(indices))

    def _micro(self) -> int:
        """Samples that fit into memory at once; what the gradient keeps is about what the forward pass makes."""
        return max(1, min(self.settings.batch, MEMORY // max(self.network.bytes(self._held(self.held[:1])), 1)))

    def _teacher(self, teacher: LoadedModel | None, feeds: Feeds) -> Session | None:
        if teacher is None:
            return None
        mixed = set(self.plan.mixed) if self.plan else set()
        keys = [k for k in candidates(self.network, teacher.proto) if k not in mixed] if self.settings.features else []
        proto = with_outputs(teacher.proto, keys)
        session = Session(teacher.beside(proto), optimized=True, threads=self.threads, what="the teacher")
        session.run(feeds, [o.name for o in teacher.proto.graph.output])
        return session

    def _objective(self, feeds: Feeds) -> Objective:
        settings = self.settings
        names = [o.name for o in self.student.proto.graph.output]
        distances: tuple[losses.Distance, ...] = ()
        found: tuple[Any, ...] = ()
        if self.teacher is not None:
            bundles = self.pool.bundles(self.training[:256], PORTION)
            outputs = [self.teacher.run(self._held(b), names) for b in bundles]
            distances = tuple(losses.distances({n: [o[k] for o in outputs] for k, n in enumerate(names)}))
            found = features(self.network, self.teacher, feeds, _removed(self.plan), settings.features)
        supervised = self._supervised(names) if settings.labels is not None else None
        if not distances and supervised is None:
            raise BadInputError("The teacher has no floating output to learn from; give --labels.")
        default = 0.0 if supervised is None else 1.0 if not distances else 0.5
        weight = default if settings.label_weight is None or not supervised or not distances else settings.label_weight
        return Objective(distances, supervised, found, settings.temperature, weight, settings.feature_weight)

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
        said: dict[str, Any] = {}
        if self.teacher is not None:
            keys = [d.name for d in self.objective.distances] + [f.key for f in self.objective.features]
            values = dict(zip(keys, self.teacher.run(mixture.feeds, keys), strict=True))
            values |= {f.key: f.of_teacher(values[f.key]) for f in self.objective.features}
            said = {k: torch.from_numpy(np.array(v, np.float32, order="C")) for k, v in values.items()}
        return Target(
            feeds=mixture.feeds,
            teacher=said,
            labels=None if labels is None else torch.from_numpy(_plain(labels)),
            other=torch.from_numpy(mixture.other),
            share=torch.from_numpy(mixture.share),
            weight=weight,
        )

    def _losses(self, targets: list[Target]) -> Any:
        keys = [f.key for f in self.objective.features]
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

    def _judge(self) -> float:
        """The held-out loss of the network as it is, in ONNX Runtime; a score of the user's counts negative."""
        session = Session(self.student.beside(self.network.export()), optimized=True, threads=self.threads)
        found = [session.run(self._fed(j)) for j in self.judged]
        if self.score is not None:
            score = _scored(self.score, session.outputs, found, self.judged)
            return -score if np.isfinite(score) else np.inf
        labels = [_plain(j[self.objective.supervised.labels]) for j in self.judged] if self.objective.supervised else []
        return self.objective.held_out(self.wanted, found, session.outputs, labels)


def _scored(score: Any, names: list[str], found: list[list[Array]], joined: list[Feeds]) -> float:
    outputs = {n: np.concatenate([f[k] for f in found]) for k, n in enumerate(names)}
    data = {n: np.concatenate([j[n] for j in joined]) if joined[0][n].ndim else joined[0][n] for n in joined[0]}
    try:
        return float(score(outputs, data))
    except Exception as error:  # the user's code may raise anything
        raise BadInputError(f"--metric failed: {type(error).__name__}: {error}.") from None


# ---------------------------------------------------------------- what is given


def _options(options: dict[str, Any]) -> FinetuneOptions:
    unknown = set(options) - set(FinetuneOptions.__dataclass_fields__)
    if unknown:
        known = ", ".join(FinetuneOptions.__dataclass_fields__)
        raise BadInputError(f"Unknown option '{sorted(unknown)[0]}'; the options are {known}.")
    settings = FinetuneOptions(**options)
    for name, least in (("steps", 1), ("batch", 1), ("features", 0), ("patience", 0), ("seed", 0)):
        if getattr(settings, name) < least:
            raise BadInputError(f"--{name} must be at least {least}, not {getattr(settings, name)}.")
    for name in ("rate", "temperature", "minutes"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise BadInputError(f"--{name} must be above zero, not {value}.")
    for name in ("decay", "feature_weight"):
        if not 0 <= getattr(settings, name) < float("inf"):
            raise BadInputError(f"--{name.replace('_', '-')} must not be negative.")
    if settings.label_weight is not None and not 0 <= settings.label_weight <= 1:
        raise BadInputError(f"--label-weight must lie between 0 and 1, not {settings.label_weight}.")
    if settings.label_weight is not None and settings.labels is None:
        raise BadInputError("--label-weight is the share of --labels; give them, or leave it out.")
    if settings.plan is not None and not settings.features:
        raise BadInputError("--plan says which features were sliced; give --features N, or leave it out.")
    for name in ("samples", "threads"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise BadInputError(f"--{name} must be at least 1, not {value}.")
    return settings


def _data(
    student: LoadedModel, data: str | Path | list[Feeds], settings: FinetuneOptions
) -> tuple[list[Feeds], frozenset[str]]:
    """The user's feeds, and the names of the labels among them where they are asked for."""
    inputs = runtime.graph_inputs(student.proto)
    named = {v.name for v in inputs}
    wants = settings.labels is not None or settings.metric is not None
    feeds = list(data) if isinstance(data, list) else load_data(data, inputs, labels=wants)
    labels: frozenset[str] = frozenset()
    if settings.labels is not None:
        name = str(settings.labels)
        if name in named:
            raise BadInputError(f"--labels '{name}' is an input of the model; name the array that holds the labels.")
        if name in feeds[0]:
            labels = frozenset({name})
        else:
            own = _labels_of(Path(settings.labels), feeds, named)
            feeds, labels = [feeds[0] | own], frozenset(own)
        for label in labels:
            if any(label in f and f[label].dtype.kind == "f" and not np.isfinite(f[label]).all() for f in feeds):
                raise BadInputError(f"Labels '{label}' contain NaN or infinity; remove or repair those samples.")
    feeds = merged(feeds, inputs)
    if settings.samples is not None:
        feeds = [_first(f, settings.samples) for f in feeds]
    return feeds, labels


def _first(feeds: Feeds, count: int) -> Feeds:
    rows = batch_of(feeds)
    return {n: a[:count] if a.ndim and a.shape[0] == rows else a for n, a in feeds.items()}


def _labels_of(path: Path, feeds: list[Feeds], inputs: set[str]) -> Feeds:
    """The arrays of a file of labels (`.npz`, or one array as `.npy`) that have as many samples as the only feed."""
    if not path.exists():
        known = ", ".join(feeds[0])
        raise BadInputError(f"--labels {path} is neither a file nor an array of the data (it has: {known}).")
    if len(feeds) != 1:
        raise BadInputError("--labels FILE goes with a single data file; with a folder, put the labels into its files.")
    arrays = read_arrays(path, "--labels", "labels")
    rows = batch_of({n: a for n, a in feeds[0].items() if n in inputs})
    fitting = {n: a for n, a in arrays.items() if n not in inputs and a.ndim and a.shape[0] == rows}
    if not fitting:
        shapes = ", ".join(f"'{n}' {list(a.shape)}" for n, a in arrays.items())
        raise BadInputError(f"--labels {path} has no array for {rows} samples (it has: {shapes}).")
    return fitting


def _same_interface(student: onnx.ModelProto, teacher: onnx.ModelProto) -> None:
    for what, mine, theirs in (
        ("inputs", runtime.graph_inputs(student), runtime.graph_inputs(teacher)),
        ("outputs", student.graph.output, teacher.graph.output),
    ):
        names = [[v.name for v in values] for values in (mine, theirs)]
        if sorted(names[0]) != sorted(names[1]):
            raise BadInputError(
                f"The teacher's {what} are {', '.join(names[1])}, the pruned model's {', '.join(names[0])}; give its original."
            )


def _read_plan(plan: str | Path) -> Plan:
    try:
        text = Path(plan).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise BadInputError(f"The plan {plan} cannot be read.") from None
    return Plan.from_json(text, f"The plan {plan}")


def _removed(plan: Plan | None) -> dict[str, list[tuple[int, list[int]]]]:
    """Positions that left each tensor of the original, by axis."""
    found: dict[str, dict[int, set[int]]] = {}
    for group in plan.groups if plan else ():
        for member in group.members:
            if member.node is None:
                found.setdefault(member.tensor, {}).setdefault(member.axis, set()).update(member.removed)
    return {name: [(a, sorted(gone)) for a, gone in axes.items()] for name, axes in found.items()}


def _plain(labels: Array) -> Array:
    """Of a type that PyTorch has."""
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels.astype(np.float32)


def _threads() -> int:
    return max(1, (os.cpu_count() or 2) // 2)


def _fingerprint(student: LoadedModel, teacher: LoadedModel | None, data: object, settings: FinetuneOptions) -> str:
    """What a checkpoint must agree on: files and settings, but not where it ends."""
    own = {k: str(v) for k, v in asdict(settings).items() if k not in ("checkpoint", "threads")}
    what = [student.sha256, teacher.sha256 if teacher else "", str(data) if isinstance(data, str | Path) else "", own]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
