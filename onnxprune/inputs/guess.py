"""Which preset a model was trained with: what its file says, and what it does when it is fed.

Asked in turn, the first that is sure decides:

1. The element type: whole numbers of 8 bits are pixels.
2. The metadata: Ultralytics writes what it exports.
3. The graph: where it begins with a subtraction, division or multiplication by constants, it normalizes by itself, and what it is fed is
   what makes that come out near zero.
4. Statistics in the graph: a batch normalization keeps mean and variance of what it saw in training; the preset by which the first
   ones see the same is the right one.
5. The answers: with the right preset a classifier is sure of each picture, and says different things of different pictures (mutual
   information of picture and class, over each picture and its mirror image).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import numpy as np

from onnxprune import runtime
from onnxprune.groups.observation import Array
from onnxprune.inputs.images import PRESETS, Preset, laid_out
from onnxprune.inputs.wanted import Wanted
from onnxprune.model.branches import showing
from onnxprune.model.graph import View, view
from onnxprune.model.importer import import_graph
from onnxprune.model.loaded import LoadedModel

TRIED = ("imagenet", "-1..1", "0..1", "0..255", "clip", "caffe")
ALIKE = 0.3  # values of two presets that differ by less, of their spread, are too near to tell apart
PICTURES = 24  # that are looked at
NORMS = 3  # batch normalizations that are looked at
FEWEST = 8  # classes of a classifier
CLEAR_STATISTICS = 0.75  # the best distance, by the second: no more than so much
CLEAR_ANSWERS = 0.85  # the second information, by the best: no more than so much
NEAR = 1.5  # distance of statistics up to which they are said to fit


@dataclass(frozen=True)
class Guess:
    """preset: None where nothing decides. reason: one sentence. figures: by preset, the best (the least) first."""

    preset: Preset | None
    reason: str
    figures: tuple[tuple[str, float], ...] = ()


def guess(model: LoadedModel, wanted: Wanted, pixels: Array, others: dict[str, Array]) -> Guess:
    """pixels: `[n, h, w, c]`, 0 to 255. others: one sample each of the model's other inputs."""
    if wanted.dtype == np.uint8:
        return Guess(PRESETS["0..255"], f"the input takes {wanted.dtype}, so pixels as they are")
    metadata = {p.key: p.value for p in model.proto.metadata_props}
    if "ultralytics" in f"{metadata.get('author', '')} {metadata.get('description', '')}".lower() or {
        "stride",
        "names",
        "task",
    } <= set(metadata):
        return Guess(PRESETS["yolo"], "the metadata say that Ultralytics exported it")
    seen = view(import_graph(model), {o.domain: o.version for o in model.proto.opset_import})
    inside = _inside(seen, wanted)
    if inside is not None:
        return inside
    few = pixels[np.linspace(0, len(pixels) - 1, min(PICTURES, len(pixels))).astype(int)]
    if found := _statistics(model, seen, wanted, few, others):
        least, second = _first_two(found, few)
        clear = least <= NEAR and least <= CLEAR_STATISTICS * second
        return _decided(found, clear, "mean and variance that its batch normalizations keep", few)
    if found := _answers(model, wanted, few, others):
        least, second = _first_two(found, few)
        return _decided(found, -second <= CLEAR_ANSWERS * -least, "how sure and how various its answers are", few)
    return Guess(None, "nothing in the model tells: it has no batch normalization left, and no output with classes")


def _alike(found: dict[str, float], pixels: Array) -> list[str]:
    """The best preset, and those that are too near to it to tell apart, in the order of `TRIED`."""
    best = min(found, key=lambda n: found[n])
    return [n for n in TRIED if n == best or (n in found and _is_alike(PRESETS[best], PRESETS[n], pixels))]


def _first_two(found: dict[str, float], pixels: Array) -> tuple[float, float]:
    """The figure of the best, and that of the best that differs from it; infinite where none does."""
    group = _alike(found, pixels)
    return min(found.values()), min((v for n, v in found.items() if n not in group), default=inf)


def _decided(found: dict[str, float], is_clear: bool, what: str, pixels: Array) -> Guess:
    ranked = tuple(sorted(found.items(), key=lambda x: x[1]))
    shown = ", ".join(f"{n} {v:.3g}" for n, v in ranked[:4])
    if not is_clear:
        return Guess(None, f"{what} do not tell presets apart ({shown}; less is better)", ranked)
    first, *others = _alike(found, pixels)
    also = f"; {' and '.join(others)} would fit as well" if others else ""
    return Guess(PRESETS[first], f"{what} fit it best ({shown}; less is better){also}", ranked)


def _is_alike(a: Preset, b: Preset, pixels: Array) -> bool:
    x, y = a(pixels[:4]), b(pixels[:4])
    return float(np.abs(x - y).mean()) < ALIKE * float(min(x.std(), y.std()) + 1e-9)


# ---------------------------------------------------------------- what the graph says


def _inside(seen: View, wanted: Wanted) -> Guess | None:
    """A normalization at the graph's start."""
    name, steps = wanted.name, list[tuple[str, float, bool]]()
    for _ in range(12):
        readers = [n for n in seen.graph.nodes if name in n.inputs]
        if len(readers) != 1:
            break
        node = readers[0]
        if node.op in ("Sub", "Add", "Mul", "Div"):
            other = next((i for i in node.inputs if i != name), "")
            if other not in seen.constants:
                break
            value = float(np.mean(_values(seen, other)))
            steps.append((node.op, value, node.inputs[0] == name))
        elif node.op not in ("Cast", "Transpose", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
            break
        name = node.outputs[0]
    if not steps:
        return None
    ends = {
        n: [_applied(steps, x) for x in (low, high)]
        for n, low, high in (("0..255", 0.0, 255.0), ("0..1", 0.0, 1.0), ("-1..1", -1.0, 1.0))
    }
    for n, (low, high) in ends.items():
        if max(abs(low), abs(high)) <= 5 and abs(high - low) >= 0.5:
            said = ", ".join(f"{op} {value:g}" for op, value, _ in steps)
            return Guess(
                PRESETS[n],
                f"the graph begins with {said}, which brings {n} to {min(low, high):.3g}..{max(low, high):.3g}",
            )
    return None


def _values(seen: View, key: str) -> Array:
    return np.asarray(seen.constants[key].values, np.float64)


def _applied(steps: list[tuple[str, float, bool]], x: float) -> float:
    how: dict[str, Callable[[float, float], float]] = {
        "Sub": lambda a, b: a - b,
        "Add": lambda a, b: a + b,
        "Mul": lambda a, b: a * b,
        "Div": lambda a, b: a / b if b else np.inf,
    }
    for op, value, is_first in steps:
        x = how[op](x, value) if is_first else how[op](value, x)
    return x


# ---------------------------------------------------------------- what the model does


def _opened(model: LoadedModel, names: list[str]) -> runtime.Session:
    return runtime.Session(model.beside(showing(model.proto, names)), what="the model")


def _runs(
    session: runtime.Session, wanted: Wanted, values: Array, others: dict[str, Array], names: list[str]
) -> Iterator[list[Array]]:
    """What a model gives for pictures, by batch. values: `[n, h, w, c]`, normalized."""
    fed = laid_out(values, wanted)
    batch = wanted.dims[0] or 1
    for k in range(0, len(fed) - batch + 1, batch):
        yield [np.asarray(x) for x in session.run_whole({wanted.name: fed[k : k + batch], **others}, names)]


def _usable(wanted: Wanted) -> Iterator[Preset]:
    for name in TRIED:
        if not (wanted.channels == 1 and PRESETS[name].order == "bgr"):
            yield PRESETS[name]


def _statistics(
    model: LoadedModel, seen: View, wanted: Wanted, pixels: Array, others: dict[str, Array]
) -> dict[str, float]:
    """How far mean and variance that the first batch normalizations see are from those that they keep, in deviations."""
    norms = [
        (n.inputs[0], _values(seen, n.inputs[3]), _values(seen, n.inputs[4]))
        for n in seen.graph.nodes
        if n.op == "BatchNormalization" and {*n.inputs[3:5]} <= {*seen.constants} and n.inputs[0] != wanted.name
    ][:NORMS]
    if not norms or all(np.allclose(m, 0) and np.allclose(v, 1) for _, m, v in norms):  # none, or never trained
        return {}
    names, found = [n for n, _, _ in norms], {}
    session = _opened(model, names)
    for preset in _usable(wanted):
        runs = list(_runs(session, wanted, preset(pixels), others, names))
        distances = []
        for k, (_, mean, variance) in enumerate(norms):
            x = np.concatenate([run[k] for run in runs]).astype(np.float64)
            x = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
            spread = np.sqrt(np.maximum(variance, 1e-12))
            live = variance > 1e-8 * variance.max()
            far = np.abs(x.mean(axis=0) - mean) / spread + np.abs(np.log(np.maximum(x.std(axis=0), 1e-9) / spread))
            distances.append(float(np.median(far[live])))
        found[preset.name] = float(np.mean(distances))
    return found


def _answers(model: LoadedModel, wanted: Wanted, pixels: Array, others: dict[str, Array]) -> dict[str, float]:
    """Less the mutual information of picture and class, in nats; nothing where no output has classes, or pictures are few."""
    if len(pixels) < FEWEST:
        return {}
    names, found = [o.name for o in model.proto.graph.output], {}
    session = _opened(model, names)
    for preset in _usable(wanted):
        two = [list(_runs(session, wanted, preset(p), others, names)) for p in (pixels, pixels[:, :, ::-1])]
        at = next(
            (k for k, x in enumerate(two[0][0]) if x.ndim == 2 and x.shape[1] >= FEWEST and x.dtype.kind == "f"), None
        )
        if at is None:
            return {}
        p = np.mean([_shares(np.concatenate([run[at] for run in runs])) for runs in two], axis=0)
        found[preset.name] = -(_entropy(p.mean(axis=0)) - float(np.mean([_entropy(row) for row in p])))
    return found


def _shares(x: Array) -> Array:
    x = x.astype(np.float64)
    if x.min() >= 0 and np.allclose(x.sum(axis=1), 1, atol=1e-2):
        return x
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def _entropy(p: Array) -> float:
    return float(-(p * np.log(np.maximum(p, 1e-12))).sum())
