"""Criteria and closed-form repairs of papers, re-implemented on this program's index maps, so that they apply to any graph.

    method     paper                            a unit's score                     taken            repair
    Wanda-sp   An et al., FLAP, 2312.11983,     mean_o |W_oj| * |X_j|_2            one share of     none
               after Sun et al., 2306.11695                                        every layer
    FLAP       An et al., 2312.11983            Var(x_j) * |W_:j|^2, standardised  over all layers  b += W_S mean(x_S)
                                                within its layer
    VBP        Berisha et al., 2507.12988       Var(x_j)                           over all layers  b += W_S mean(x_S)
    GRAIL      Tang et al., 2602.23795          Wanda's (any selector goes)        one share        W_P = W G_P' (G_PP + l I)^-1
    CORP       Zhang and Yang, 2602.05243       E[x_j^2]                           one share        ridge on covariances, into W
                                                                                                    and b; logits, see `logit_maps`

x are the inputs of the layer that reads the units, W its weights, S the units that go, P those that stay, G = E[x x'].

What is not in the papers, and how it is filled in here:
- They prune the hidden units of perceptrons and whole heads (GRAIL also channels inside residual blocks). Here they get every group that
  can lose units. A convolution has a column per channel and tap; a unit's score is the sum over its columns (for variance and energy, the
  mean), and where several layers read it, over these. GRAIL's Gram matrix of a convolution is that of its channels, as in its code.
- Units that no layer reads but that are multiplied with each other (queries and keys) are scored by the same statistic of what makes them:
  the geometric mean over both sides of the variance (FLAP, VBP) or the energy (Wanda-sp, GRAIL, CORP). What is left (recurrences) goes by
  the norm of its weights.
- GRAIL's ridge is 1e-3 of the mean of the diagonal of G_PP, as in its code; CORP's is set to the same share here. CORP's ranking was taken
  to be by energy, its paper being about the repair. Statistics are those of the original, in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx

from onnxprune.calibrate.calibrate import Matrices
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.moments import Moments
from onnxprune.choose.allocate import allocate
from onnxprune.choose.budget import Budget
from onnxprune.choose.cost import Cost
from onnxprune.choose.importance import IMPORTANCES
from onnxprune.choose.mix import _showing
from onnxprune.choose.mixable import Block, blocks_of
from onnxprune.choose.sensitivity import _lost, _write
from onnxprune.cut.rewrite import rewrite
from onnxprune.errors import TargetNotReachableError
from onnxprune.groups.analysis import Analysis, Use
from onnxprune.groups.classes import Bools
from onnxprune.groups.observation import Array
from onnxprune.model.patch import with_constants
from onnxprune.ops.layer import LinearLayer
from onnxprune.ops.linear import Floats

RIDGE = 1e-3  # of the mean of the diagonal
SHARES = 14  # halvings of the share that every layer loses

Changes = dict[Use, Array]
Statistic = Callable[[Moments, int, Floats], Floats]
"""Moments of a layer, a group of it, and its weights [K, O] -> a number per column [K]."""
Fill = Callable[[Moments, int, Array, Array, Floats], Floats]
"""Moments, group, columns that stay and that go, weights [K, O] -> new weights of those that stay."""


@dataclass(frozen=True)
class Method:
    """scores: one per class. spread: one share of every group, or the lowest scores of all groups. repair: constants, already cut."""

    scores: Callable[[Analysis, Calibration, int], Floats]
    spread: Literal["share", "all"]
    repair: Callable[[Analysis, Calibration, Bools], Changes] | None = None
    before: Callable[[Analysis, Calibration, Bools], Changes] | None = None
    """Constants of the whole model to change before it is cut."""


def pruned(
    analysis: Analysis, calibration: Calibration, method: Method, cost: Cost, keep: float, seed: int = 0
) -> onnx.ModelProto:
    """The model by a paper's method, with at most the share `keep` of the cost, and the most that it can have of it.

    Raises `TargetNotReachableError`.
    """
    removed = chosen(analysis, method.scores(analysis, calibration, seed), method.spread, cost, keep)
    if method.before is not None:
        new = method.before(analysis, calibration, removed)
        analysis, calibration = _with(analysis, calibration, new)
    cut = rewrite(analysis, removed)
    return cut if method.repair is None else with_constants(cut, method.repair(analysis, calibration, removed))


def chosen(analysis: Analysis, scores: Floats, spread: str, cost: Cost, keep: float) -> Bools:
    """What goes: the lowest scores of all groups together, or the smallest share of every group that meets the target.

    Of a share, groups get a unit less where the target is met without it, the last ones first.
    """
    if spread == "all":
        return allocate(analysis, scores, Budget("macs", keep), 1, cost).removed

    def at(share: float) -> Bools:
        return allocate(analysis, scores, Budget("ratio", share), 1, cost).removed

    target = keep * cost.total()
    low, high, least, found = 0.0, 1.0, np.zeros(analysis.solution.count, bool), None
    for _ in range(SHARES):
        middle = (low + high) / 2
        removed = at(middle)
        if cost.total(removed) <= target:
            high, found = middle, removed
        else:
            low, least = middle, removed
    if found is None:
        raise TargetNotReachableError(f"No share of every layer leaves {keep:g} of the {cost.name}.")
    for group in reversed(analysis.groups):
        milder = found.copy()
        milder[group.classes] = least[group.classes]
        milder = analysis.solution.closure(milder)
        if cost.total(milder) <= target:
            found = milder
    return found


# ---------------------------------------------------------------- scores


def wanda(moments: Moments, g: int, w: Floats) -> Floats:
    """mean_o |W_oj| |X_j|_2, with the root of the mean square for the norm: within a layer, that is the same order."""
    return np.asarray(np.abs(w).mean(axis=1) * np.sqrt(energy(moments, g, w)))


def energy(moments: Moments, g: int, w: Floats) -> Floats:
    """E[x_j^2]."""
    return np.asarray(np.diagonal(moments.xx[g]) / max(moments.count, 1))


def variance(moments: Moments, g: int, w: Floats) -> Floats:
    """Var(x_j)."""
    return np.asarray(np.maximum(energy(moments, g, w) - moments.mean_x[g] ** 2, 0.0))


def fluctuation(moments: Moments, g: int, w: Floats) -> Floats:
    """WIFV: Var(x_j) |W_:j|^2."""
    return np.asarray(variance(moments, g, w) * np.square(w).sum(axis=1))


def scored(
    statistic: Statistic, unread: Statistic, mean: bool = False, standardised: bool = False
) -> Callable[[Analysis, Calibration, int], Floats]:
    """Scores of classes [classes] from a statistic of the columns of every layer that reads them.

    unread: the statistic of units that no layer reads, of what makes them. mean: over a unit's columns in a layer, instead of the sum.
    standardised: within each layer, to mean 0 and deviation 1; then the mean over the layers.
    """

    def scores(analysis: Analysis, calibration: Calibration, seed: int) -> Floats:
        count = analysis.solution.count
        total, seen = np.zeros(count), np.zeros(count)
        for layer, moments, weights in _reading(analysis, calibration):
            found, number = np.zeros(count), np.zeros(count)
            for classes in _columns(analysis, layer):
                for g, of in enumerate(classes):
                    known = of >= 0
                    each = statistic(moments, g, weights[g].astype(np.float64))
                    found += np.bincount(of[known], weights=each[known], minlength=count)
                    number += np.bincount(of[known], minlength=count)
            here = number > 0
            if not here.any():
                continue
            values = found[here] / (number[here] if mean else 1.0)
            total[here] += _standard(values) if standardised else values
            seen[here] += 1
        result = total / np.maximum(seen, 1) if standardised or mean else total
        made, known = _made(analysis, calibration, unread, seen > 0, standardised)
        result, known = np.where(seen > 0, result, made), known | (seen > 0)
        if known.all():
            return result
        weights = magnitude(analysis, calibration, seed)
        scale = float(np.median(result[known])) if known.any() else 1.0
        return np.where(known, result, _standard(weights) if standardised else scale * weights)

    return scores


def _standard(values: Floats) -> Floats:
    return np.asarray((values - values.mean()) / max(float(values.std(ddof=min(1, values.size - 1))), 1e-30))


def _reading(analysis: Analysis, calibration: Calibration) -> Iterator[tuple[LinearLayer, Moments, Array]]:
    """Layers with what they read; not those whose outputs go with their inputs (depthwise)."""
    for layer in calibration.layers:
        moments = calibration.moments.get(layer.key)
        if moments is None or not moments.count or layer.linear.groups > 1:
            continue
        yield layer, moments, calibration.weights[layer.key]


def _columns(analysis: Analysis, layer: LinearLayer) -> Iterator[Array]:
    """Classes [g, K] of a layer's columns, for each way to tell its channels apart; -1 for none."""
    shape = analysis.observation.shapes.get(layer.x)
    if shape is None:
        return
    axis = layer.linear.channel_axis % len(shape)
    for units in analysis.along(layer.x, axis):
        yield np.broadcast_to(analysis.solution.classes[units], (shape[axis],))[layer.linear.channels]


def _made(
    analysis: Analysis, calibration: Calibration, statistic: Statistic, read: Bools, standardised: bool
) -> Floats:
    """The same of units that no layer reads, by the layers that make them: the geometric mean over these."""
    count = analysis.solution.count
    total, seen = np.zeros(count), np.zeros(count)
    for layer, moments, weights in _reading(analysis, calibration):
        shape = analysis.observation.shapes.get(layer.y)
        if shape is None:
            continue
        axis = 1 if layer.linear.channel_axis == 1 else len(shape) - 1
        for units in analysis.along(layer.y, axis):
            classes = np.broadcast_to(analysis.solution.classes[units], (shape[axis],))
            wanted = (classes >= 0) & ~np.append(read, True)[classes]
            if not wanted.any():
                continue
            values = np.log(
                np.maximum(statistic(_outputs(calibration, layer, moments, weights), 0, np.ones((1, 1))), 1e-30)
            )
            if values.size == classes.size:
                total += np.bincount(classes[wanted], weights=values[wanted], minlength=count)
                seen += np.bincount(classes[wanted], minlength=count)
    result = np.where(seen > 0, np.exp(total / np.maximum(seen, 1)), 0.0)
    if standardised and (seen > 0).any():
        for group in analysis.groups:
            mine = group.classes[seen[group.classes] > 0]
            if mine.size:
                result[mine] = _standard(result[mine])
    return result, seen > 0


def _outputs(calibration: Calibration, layer: LinearLayer, moments: Moments, weights: Array) -> Moments:
    """Moments of a layer's outputs, from those of its inputs: mean W'm + b, covariance W'CW. Only the diagonal is filled."""
    w = weights[0].astype(np.float64)
    bias = layer.linear.bias(calibration.constants(layer.b).astype(np.float64)) if layer.b else None
    mean = moments.mean_x[0] @ w + (0.0 if bias is None else np.asarray(bias).reshape(-1))
    spread = np.einsum("ko,ko->o", w, moments.covariance_of(0) @ w)
    empty = Moments.empty(1, mean.size, 0)
    return replace(empty, count=1, x=mean[None], xx=np.diag(spread + mean**2)[None])


def magnitude(analysis: Analysis, calibration: Calibration, seed: int) -> Floats:
    return IMPORTANCES["l2"](analysis, calibration, seed)


def chance(analysis: Analysis, calibration: Calibration, seed: int) -> Floats:
    return IMPORTANCES["random"](analysis, calibration, seed)


# ---------------------------------------------------------------- repairs


def as_is(moments: Moments, g: int, kept: Array, lost: Array, w: Floats) -> Floats:
    """Weights stay; with the means in the bias, what FLAP and VBP do."""
    return w[kept]


def affine(moments: Moments, g: int, kept: Array, lost: Array, w: Floats) -> Floats:
    """CORP: x_S = m_S + B (x_P - m_P), B = C_SP (C_PP + l I)^-1."""
    return np.asarray(w[kept] + _ridge(moments.covariance_of(g), kept, lost) @ w[lost])


def gram(channels: Array) -> Fill:
    """GRAIL: x = B x_P with B' = (G_PP + l I)^-1 G_P: of channels, the same for every tap. channels [K]: of the columns."""

    def fill(moments: Moments, g: int, kept: Array, lost: Array, w: Floats) -> Floats:
        taps = _taps(channels)
        whole = moments.xx[g] / max(moments.count, 1)
        of_channel = np.mean([whole[np.ix_(tap, tap)] for tap in taps], axis=0)
        stays = np.flatnonzero(np.isin(taps[0], kept))
        a = of_channel[np.ix_(stays, stays)]
        ridge = RIDGE * np.trace(a) / len(a) + 1e-12
        new = np.zeros_like(w)
        for tap in taps:
            new[tap[stays]] = np.linalg.solve(a + ridge * np.eye(len(a)), of_channel[stays] @ w[tap])
        return new[kept]

    return fill


def _taps(channels: Array) -> list[Array]:
    """Columns of each tap of a kernel, by channel."""
    order = np.argsort(channels, kind="stable").reshape(np.unique(channels).size, -1)
    return list(order.T)


def _ridge(c: Floats, kept: Array, lost: Array) -> Floats:
    """(C_PP + l I)^-1 C_PS."""
    a = c[np.ix_(kept, kept)]
    return np.asarray(
        np.linalg.solve(a + (RIDGE * np.trace(a) / len(a) + 1e-12) * np.eye(len(a)), c[np.ix_(kept, lost)])
    )


def repairing(fill: Callable[[LinearLayer], Fill], biased: bool) -> Callable[[Analysis, Calibration, Bools], Changes]:
    """Weights and biases of all layers that lose inputs. biased: the bias takes what the means of the inputs are off by."""

    def repair(analysis: Analysis, calibration: Calibration, removed: Bools) -> Changes:
        gone = analysis.solution.of_units(removed)
        changes: Changes = {}
        for layer in calibration.layers:
            lost, moments = _lost(analysis, layer, gone), calibration.moments.get(layer.key)
            if lost is None or moments is None or not moments.count or lost.all(axis=1).any():
                continue
            old = calibration.weights[layer.key].astype(np.float64)
            new = np.zeros_like(old)
            for g, out in enumerate(lost):
                kept, without = np.flatnonzero(~out), np.flatnonzero(out)
                new[g, kept] = fill(layer)(moments, g, kept, without, old[g]) if without.size else old[g, kept]
            shift = np.einsum("gk,gko->go", moments.mean_x, old - new) if biased else np.zeros(old.shape[::2])
            _write(analysis, calibration, layer, new, shift, gone, changes)
        return changes

    return repair


def logit_maps(analysis: Analysis, calibration: Calibration, removed: Bools) -> Changes:
    """CORP's logits: q_S k_S' = q_P M k_P' by ridge over all pairs of positions of a sample, and q_P' becomes q_P (I + M).

    With Q and K [positions, n] of a sample, the sum over samples of (Q_P'Q_P) M (K_P'K_P) is that of (Q_P'Q_S)(K_S'K_P).
    """
    blocks = [
        b for b in blocks_of(analysis, calibration) if b.product and 0 < removed[b.classes[:, 0]].sum() < len(b.classes)
    ]
    maps = {id(b): np.eye(len(b.classes)) for b in blocks}
    sums = _pairs(analysis, calibration, blocks, removed)
    for block in blocks:
        if id(block) not in sums:
            continue
        stays = np.flatnonzero(~removed[block.classes[:, 0]])
        a, c = sums[id(block)]
        a = a + (RIDGE * np.trace(a) / len(a) + 1e-12) * np.eye(len(a))
        maps[id(block)][np.ix_(stays, stays)] += np.linalg.solve(a, c).reshape(len(stays), len(stays))
    values: Changes = {}
    for block in blocks:
        t = maps[id(block)]
        for constant in block.constants:
            old = values.get(constant.use)
            if old is None:
                old = np.asarray(analysis.view.constants[analysis.uses[constant.use][0]].values)
            matrices = [t.T if side == 0 else np.eye(len(t)) for side in constant.sides]
            values[constant.use] = constant.carried.mixed(old, matrices).astype(old.dtype)
    return values


def _pairs(
    analysis: Analysis, calibration: Calibration, blocks: list[Block], removed: Bools
) -> dict[int, tuple[Floats, Floats]]:
    """By block, the sums over samples of (Q_P'Q_P) x (K_P'K_P) and of vec((Q_P'Q_S)(K_S'K_P))."""
    sums: dict[int, tuple[Floats, Floats]] = {}
    names = list(dict.fromkeys(key for b in blocks for key, _ in b.product))
    if not names:
        return sums
    session = _showing(analysis, calibration, names)
    for run, feeds in enumerate(calibration.samples.feeds):
        values = dict(zip(names, session.run(run, feeds, names), strict=True))
        for block in blocks:
            (a, first), (b, second) = block.product
            q, k = values[a], values[b]
            if q is None or k is None or first.facet[0] != 1 or len(first.lines) != len(second.lines):
                continue
            gone = removed[block.classes[:, 0]]
            for n in range(len(q)):
                x, y = (c.front(v[n : n + 1])[c.lines].astype(np.float64) for c, v in ((first, q), (second, k)))
                for mine, theirs in zip(x, y, strict=True):
                    qq, kk = mine[~gone] @ mine.T, theirs @ theirs[~gone].T
                    both = np.kron(qq[:, ~gone], kk[~gone].T), (qq[:, gone] @ kk[gone]).ravel()
                    old = sums.get(id(block), (0.0, 0.0))
                    sums[id(block)] = old[0] + both[0], old[1] + both[1]
    return sums


def _with(analysis: Analysis, calibration: Calibration, new: Changes) -> tuple[Analysis, Calibration]:
    """The model with other constants, and a calibration that reads them; its moments stay those of the original."""
    from onnxprune.choose.subject import with_model

    by_use = {(x.key, x.linear.w): x.w for x in calibration.layers} | {
        (x.adder if x.adder else (x.key, x.linear.b or 0)): x.b for x in calibration.layers if x.b
    }
    values = {by_use[use]: value for use, value in new.items() if use in by_use}

    def constants(name: str) -> Array:
        found = values.get(name)
        return calibration.constants(name) if found is None else found

    turned = with_model(analysis, with_constants(analysis.model.proto, new))
    return turned, replace(calibration, constants=constants, weights=Matrices(calibration.layers, constants))


_BIAS = repairing(lambda layer: as_is, biased=True)

METHODS: dict[str, Method] = {
    "random": Method(chance, "share"),
    "L2 magnitude": Method(magnitude, "share"),
    "Wanda-sp": Method(scored(wanda, energy), "share"),
    "FLAP": Method(scored(fluctuation, variance, standardised=True), "all", _BIAS),
    "VBP": Method(scored(variance, variance, mean=True), "all", _BIAS),
    "GRAIL": Method(
        scored(wanda, energy), "share", repairing(lambda layer: gram(layer.linear.channels[0]), biased=False)
    ),
    "CORP": Method(
        scored(energy, energy, mean=True), "share", repairing(lambda layer: affine, biased=True), before=logit_maps
    ),
}
