"""Fine-tuning an ONNX file without its training code, on one page: load -> check -> set out -> train -> judge -> write.

    finetune("small.onnx", "original.onnx", data="inputs.npz", output="tuned.onnx")

The pruned graph itself is trained (`training/network.py`); only numbers of its weights change. By default no labels are needed: the
original is the teacher, and it labels whatever the student is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnxprune import runtime
from onnxprune.choose.checks import existing
from onnxprune.choose.finetune_options import finetune_options_of
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Feeds
from onnxprune.model.files import check_outputs
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.model.save import save_result
from onnxprune.report.lines import decided_line, judged_line
from onnxprune.report.values import Decided, NotJudged
from onnxprune.words import counted

if TYPE_CHECKING:
    from onnxprune.training.loop import Trained
    from onnxprune.training.network import Frozen


@dataclass(frozen=True)
class FinetuneResult:
    """model: the best state by held-out samples, the unchanged start where nothing was better. frozen: weights without a gradient.

    judged_by: tensors that are compared with the teacher's. not_judged: outputs that are none of these. decided: sizes that depend on
    values, which are the teacher's while it trains the model.
    """

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
    judged_by: tuple[str, ...] = ()
    not_judged: tuple[NotJudged, ...] = ()
    decided: tuple[Decided, ...] = ()

    @property
    def is_improved(self) -> bool:
        return self.trained.after < self.trained.before

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model atomically, with external data if the pruned file had it."""
        save_result(self.model, path, self.source, self.spared)

    def lines(self) -> list[tuple[str, str]]:
        """What a person should know, as (heading, text)."""
        t = self.trained
        rows = [("checked", f"PyTorch equals ONNX Runtime to {self.error:.1e} of the output's scale")]
        rows.append(
            (
                "trained",
                f"{self.weights - len(self.frozen)} of {counted(self.weights, 'weight')}, "
                f"{counted(self.training, 'sample')}, {self.held} held out",
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
        if self.not_judged:
            rows.append(("judged", judged_line(self.judged_by, self.not_judged).removeprefix("judged ")))
        if self.decided:
            rows.append(("decided", decided_line(self.decided)))
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
    settings = finetune_options_of(options)
    if teacher is None and settings.labels is None:
        raise BadInputError("Give --teacher (the original model), --labels, or both: there is nothing to learn from.")
    if settings.features and teacher is None:
        raise BadInputError("--features are compared with those of --teacher; give it, or leave them out.")
    if settings.from_scratch and settings.labels is None:
        raise BadInputError("--from-scratch is trained with labels; give --labels.")
    data = data if isinstance(data, list) else existing("a .npz file or a folder of them")("--data", data)
    from onnxprune.api import finetuning, training_data  # PyTorch is needed from here on

    files = {"-o": output, "--checkpoint": settings.checkpoint}
    check_outputs(files, (pruned, teacher, data, settings.labels, settings.plan))
    runtime.load_custom_ops(settings.custom_ops)
    progress("load")
    student = load(pruned)
    original = None if teacher is None else load(teacher)
    spared = student.data_files | (original.data_files if original else frozenset())
    check_outputs(files, spared)
    if original is not None:
        training_data.check_same_interface(student.proto, original.proto)
    feeds, labels = training_data.data_of(student, data, settings)
    cut = finetuning.cut_of(settings.plan)
    with finetuning.threads(settings.threads):
        result = finetuning.Tuning(
            student,
            original,
            partial(training_data.material_of, student, feeds, data, settings),
            cut=cut,
            settings=settings,
            progress=progress,
            labels=labels,
            run=training_data.fingerprint(student, original, data, settings),
        ).result()
    result = replace(result, spared=spared)
    if output is not None:
        progress("write")
        result.save(output)
    return result
