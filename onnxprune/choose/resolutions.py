"""A coarser picture instead of fewer channels: at which resolution the model works, by measured damage.

    original -> resize the input (cut/resolution.py) -> calibrate, sense, allocate, rewrite -> repair

Channels that go are chosen by the inputs that were shown, and what only others need goes with them. A coarser picture forgets nothing of
that kind; it costs what is small in a picture. The channels alone are pruned to the target first. Then one resolution after the other,
the finest first, is pruned to the same target, as long as the finished models get better; the best is taken where its damage on held-out
samples, against the outputs of the original, is less than that of channels alone, or close to it (`CLOSE`).

Layers are fitted to what they gave at the new resolution before anything was cut; layers behind a pooling over all positions, which give as
many numbers as in the original, are fitted to the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf

from onnxprune.analyse.observe import analysis_of
from onnxprune.calibrate.calibrate import calibrate
from onnxprune.calibrate.calibration import Finer
from onnxprune.choose.budget import Budget
from onnxprune.choose.costs import CostModel
from onnxprune.choose.layers import Choice, Sized, judged_whole
from onnxprune.choose.options import Options
from onnxprune.choose.sensitivity import Trials
from onnxprune.choose.subject import Subject, deciding, with_model
from onnxprune.clock import Clock
from onnxprune.cut.resolution import OPSET, Picture, Resolution, pictures, resized
from onnxprune.errors import BadInputError, NothingPrunableError, TargetNotReachableError
from onnxprune.groups.analysis import Analysis
from onnxprune.model.branches import opset_of
from onnxprune.model.patch import inputs_at

CLOSE = 1.15
"""Times the damage of channels alone: so much is as good. Held-out samples choose widths and ridges, which flatters channels: at 192 x 192
an EfficientNet-Lite0 loses 0.74 (720 inputs, half the MACs), 1.07 (720 inputs, 0.7) and 1.02 (64 inputs, 0.7) times as much on them, and
0.63, 0.94 and 0.83 times as much on pictures that nothing has seen.
"""
LITTLE = 0.02  # damage of the channels alone that is not worth a look at anything else
LEAST = 64  # pixels of a side; what is shown in fewer is small in all its parts
FINEST = 0.5  # of a side; less is not looked at
STEP = 1 / 8  # of a side: the next one that is looked at is at least so much less
OVER = 0.9  # of the target: what has fewer MACs before any channel goes gives away too much
TAKEN = "taken"


def chosen(original: Subject, budget: Budget, settings: Options, clock: Clock, sensed: Trials | None = None) -> Choice:
    """Channels alone, or a coarser picture and channels. sensed: as `sense` takes trials. Raises `TargetNotReachableError`."""
    decide = deciding(original, budget, settings, clock, sensed)
    total = original.costs.of(budget.cost).total()
    found = list(possible(original, budget.goal(total) / total if total else 1.0))
    found = found if original.against is not None else []

    def tried(resolution: Resolution) -> Choice:
        subject = coarser(original, resolution, settings, clock)
        cost = subject.costs.of(budget.cost).total()
        target = Budget(budget.metric, min(1.0, budget.goal(total) / cost))
        if target.amount == 1.0:
            return judged_by_own(Choice(subject, subject.nothing), original, settings, clock)
        own = deciding(subject, target, settings, clock, sensed)
        made = Choice(subject, own(target), damages=own.damages)
        return judged_by_own(made, original, settings, clock)

    try:
        alone = Choice(original, decide(budget), damages=decide.damages)
    except (TargetNotReachableError, NothingPrunableError):  # by channels alone
        choice = best_of(Choice(original, original.nothing), found, tried, clock)
        if choice.subject is original:
            raise
        return choice
    return best_of(judged_by_own(alone, original, settings, clock), found, tried, clock) if found else alone


def best_of(alone: Choice, found: Sequence[Resolution], tried: Callable[[Resolution], Choice], clock: Clock) -> Choice:
    """The first choice, or the best one at another resolution that is as good. Damages of all are those of finished models.

    alone: without a coarser picture, or with infinite damage where there is none. tried: the finished choice at a resolution; raises
    `BadInputError`, `TargetNotReachableError` or `NothingPrunableError` where there is none.
    """
    best = alone
    if alone.damage <= LITTLE:
        return alone
    last, sizes = CLOSE * alone.damage, list[Sized]()
    for number, resolution in enumerate(found):
        clock(f"resolution {number + 1} of at most {len(found)}")
        try:
            made = tried(resolution)
        except BadInputError as problem:
            sizes.append(Sized(resolution, None, None, f"it does not run so: {problem}"))
            break
        except (TargetNotReachableError, NothingPrunableError) as problem:
            sizes.append(Sized(resolution, None, None, str(problem)))
            continue
        macs = made.subject.costs.macs() / max(1, alone.subject.costs.macs())
        is_better = made.damage < last
        damage = made.damage if made.damage < inf else None
        sizes.append(Sized(resolution, macs, damage, TAKEN if is_better else "loses more than the one before"))
        if not is_better:
            break
        best, last = made, made.damage
    own = alone.damage if alone.damage < inf else None
    return replace(best, sizes=tuple(_superseded(sizes)), own_size=own)


def judged_by_own(choice: Choice, original: Subject, settings: Options, clock: Clock) -> Choice:
    """With the finished model, and its damage on the held-out samples that are the user's: what is patched together is small in parts."""
    assert original.against is not None
    return judged_whole(choice, original, settings, clock, original.against.samples.own_held)


def _superseded(sizes: list[Sized]) -> Iterator[Sized]:
    """Of several that were taken, the last one is."""
    taken = [k for k, s in enumerate(sizes) if s.verdict == TAKEN]
    for k, told in enumerate(sizes):
        yield replace(told, verdict="a coarser one loses less") if k in taken[:-1] else told


def possible(original: Subject, share: float) -> Iterator[Resolution]:
    """Resolutions that may do for a share of the MACs, the finest first. Strides divide their sides as they do those of the original."""
    analysis = original.bare
    known = pictures(analysis.model.proto)
    if opset_of(analysis.model.proto) < OPSET or len(known) != 1 or min(known[0].size) < LEAST:
        return
    picture = known[0]
    smallest = _smallest(original, picture)
    if smallest is None:
        return
    whole, last = smallest[0], 1.0
    for cells in range(whole - 1, 0, -1):
        part = cells / whole
        if part < FINEST or part**2 < OVER * share:
            return
        if part > last - STEP:
            continue
        last = part
        size = [_nearest(side, cell, part) for side, cell in zip(picture.size, smallest, strict=True)]
        yield Resolution(picture.name, picture.axes, (size[0], size[1]))


def _nearest(side: int, cells: int, part: float) -> int:
    """The side that has the nearest whole number of cells to a part of those that it has."""
    stride = side // cells
    return stride * max(1, round(cells * part))


def _smallest(original: Subject, picture: Picture) -> tuple[int, int] | None:
    """Positions along height and width where a picture has the fewest, of what convolutions make; None where there are none."""
    shapes = original.bare.observation.shapes
    nodes = original.bare.view.graph.walk()
    made = [o for n in nodes if n.op == "Conv" for o in n.outputs[:1] if len(shapes.get(o, ())) == 4]
    sizes = [(shapes[o][2], shapes[o][3]) for o in made]
    sizes = [s for s in sizes if all(1 < cells <= side for cells, side in zip(s, picture.size, strict=True))]
    return min(sizes, key=lambda s: s[0] * s[1], default=None)


def coarser(
    original: Subject, resolution: Resolution, settings: Options, clock: Clock, decides: bool = True
) -> Subject:
    """The original at another resolution. decides: what deciding about channels needs is measured.

    Raises `BadInputError` where the model does not take it, or gives outputs of another size.
    """
    model = original.bare.model
    at_size = replace(model, proto=resized(model.proto, resolution))
    bare = analysis_of(at_size, settings.scope, original.bare.observation.feeds)
    same = _same(original.bare, bare)
    against = original.against
    wanted = [o.name for o in model.proto.graph.output] + ([] if against is None else list(against.judged.names))
    if not same.issuperset(wanted) or (against is not None and against.judged.decisions):
        raise BadInputError("its outputs would have another size")
    costs = CostModel(bare, original.costs.timer)
    if against is None:
        return Subject((), bare, bare, costs, None, None, resolution=resolution)
    basis = resized(original.analysis.model.proto, resolution)
    analysis = with_model(bare, basis)
    own = calibrate(analysis, against.samples, against.judged, settings.seed, against.made_up, clock.share)
    finer = Finer(against.flat, against.routing, same)
    aimed = replace(own, outputs=against.outputs, moments={}, finer=finer)
    changed = tuple(inputs_at(basis, original.changed))
    own = own if decides else aimed
    return Subject((), bare, analysis, costs, own, aimed, changed, original.mixed, original.blocks, resolution)


def _same(original: Analysis, bare: Analysis) -> frozenset[str]:
    """Tensors that have one size in both."""
    a, b = original.observation, bare.observation
    return frozenset(
        k for k in a.shapes if a.shapes[k] == b.shapes.get(k) and a.other_shapes.get(k) == b.other_shapes.get(k)
    )
