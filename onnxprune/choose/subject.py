"""What channels are pruned from: the original, in the bases that suit it (`choose/mix.py`), or what bypasses leave of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxprune import runtime
from onnxprune.analyse.sources import Aside
from onnxprune.calibrate.calibrate import calibrate
from onnxprune.calibrate.calibration import Calibration
from onnxprune.choose.budget import Budget
from onnxprune.choose.channels import Decider, calibrated, decider
from onnxprune.choose.costs import CostModel
from onnxprune.choose.mix import Basis, bases, changes
from onnxprune.choose.options import Options
from onnxprune.choose.sensitivity import Trials
from onnxprune.choose.timer import Timer
from onnxprune.clock import Clock
from onnxprune.cut.bypass import Bypass
from onnxprune.cut.resolution import Mark, Resolution
from onnxprune.groups.analysis import Analysis
from onnxprune.groups.classes import Bools
from onnxprune.model.graph import view
from onnxprune.model.importer import import_graph
from onnxprune.model.patch import inputs_at, with_constants
from onnxprune.proof.compare import error, tolerance_of

COMPARED = 4  # portions of samples, beside the feeds of the analysis
HALF = 5e-3  # of the outputs' scale, for 16-bit floats


@dataclass(frozen=True)
class Subject:
    """The model that channels are removed from. Mostly the original; but layers may have been bypassed before, and weights rewritten.

    bypasses: layers and nodes that are gone already.
    bare: analysis of the original without what was bypassed, all its weights untouched. The proof is about this one.
    analysis: the same with rewritten weights: principal directions (`choose/mix.py`), repairs after a bypass. What is removed is
        decided on this one, and it has the classes and groups of `bare`.
    costs: of `bare`.
    calibration: moments of what its own layers read; None where nothing is measured. against: the same samples with the outputs
        and layers of the *original*: what damage and repair are measured against.
    changed: (node key, input) of every constant that was rewritten.
    mixed: tensors whose units are principal directions; blocks: how many sets of units were mixed.
    resolution: at which the model works on its pictures, where that is not their own (`choose/resolutions.py`).
    """

    bypasses: tuple[Bypass, ...]
    bare: Analysis
    analysis: Analysis
    costs: CostModel
    calibration: Calibration | None
    against: Calibration | None
    changed: tuple[tuple[str, int], ...] = ()
    mixed: tuple[str, ...] = ()
    blocks: int = 0
    resolution: Resolution | None = None

    @property
    def nothing(self) -> Bools:
        """No class removed."""
        return np.zeros(self.bare.solution.count, bool)

    @property
    def mark(self) -> Mark:
        """What was done to the original before channels are removed."""
        return self.bypasses, self.resolution


def uncalibrated(analysis: Analysis) -> Subject:
    """The original as it is."""
    return Subject((), analysis, analysis, CostModel(analysis), None, None)


def whole(
    analysis: Analysis, settings: Options, clock: Clock, aside: Aside | None = None, timer: Timer | None = None
) -> Subject:
    """The original, calibrated where anything asks for it, and in other bases where its weights may be changed.

    aside: set samples apart that no step looks at until finished models are judged. timer: for a target that is a time.
    """
    costs = CostModel(analysis, timer)
    clock("calibrate")
    calibration = calibrated(analysis, settings, costs, clock, aside)
    plain = Subject((), analysis, analysis, costs, calibration, calibration)
    if calibration is None or not settings.mix:
        return plain
    clock("mix")
    chosen = _exact(analysis, calibration, _in_place(analysis, bases(analysis, calibration)))
    if not chosen:
        return plain
    new = changes(analysis, chosen)
    turned = with_model(analysis, with_constants(analysis.model.proto, new))
    mixed = tuple(dict.fromkeys(t for basis in chosen for t in basis.block.tensors))
    samples, made_up = calibration.samples, calibration.made_up
    calibration.moments.clear()  # those of the new bases take their place
    own = calibrate(turned, samples, calibration.judged, settings.seed, made_up, clock.share)
    return Subject((), analysis, turned, costs, own, own, tuple(new), mixed, len(chosen))


def deciding(
    subject: Subject, budget: Budget, settings: Options, clock: Clock, trials: Trials | None = None
) -> Decider:
    """What to remove of a subject, as a function of the target (`decider`). trials: as `sense` takes them."""
    return decider(
        subject.analysis,
        subject.calibration,
        budget,
        settings,
        subject.costs,
        clock,
        trials=trials,
        mark=subject.mark,
    )


def with_model(analysis: Analysis, proto: onnx.ModelProto) -> Analysis:
    """The same analysis of a model that differs in the values of its constants only: they have the same names, too."""
    loaded = replace(analysis.model, proto=proto)
    return replace(analysis, model=loaded, view=view(import_graph(loaded), analysis.view.opsets))


def _in_place(analysis: Analysis, found: Sequence[Basis]) -> list[Basis]:
    """Those whose constants can be changed where they are stored: new ones are nothing that the analysis knows."""
    proto = analysis.model.proto
    new = changes(analysis, found)
    before, after = (inputs_at(m, new) for m in (proto, with_constants(proto, new)))
    moved = {use for use in new if before.get(use) != after.get(use)}
    return [b for b in found if not any(c.use in moved for c in b.block.constants)]


def _exact(analysis: Analysis, calibration: Calibration, found: Sequence[Basis]) -> list[Basis]:
    """Those that leave the outputs what they were, as far as floats do."""
    if not found:
        return []
    proto = analysis.model.proto
    samples = calibration.samples
    feeds = [*analysis.feeds, *(samples.feeds[k] for portion in samples.portions()[:COMPARED] for k in portion)]
    original = runtime.Session(analysis.model)
    wanted = [original.run(f) for f in feeds]
    del original  # as large as the file, or twice that
    allowed = min(tolerance_of(proto, 0.0), HALF)

    def is_exact(some: Sequence[Basis]) -> bool:
        session = runtime.Session(
            analysis.model.beside(with_constants(proto, changes(analysis, some))), what="the model in other bases"
        )
        return all(error(w, session.run(f)) <= allowed for w, f in zip(wanted, feeds, strict=True))

    def exact(some: list[Basis]) -> list[Basis]:
        if not some or is_exact(some):
            return some
        if len(some) == 1:
            return []
        half = len(some) // 2
        left = [*exact(some[:half]), *exact(some[half:])]
        return left if is_exact(left) else []

    return exact(list(found))
