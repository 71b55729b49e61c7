"""Detection (NudeNet, a YOLOv8n): do the boxes agree with those of the unpruned model?

The pictures come from the wheel of scikit-image: crops and mirror images of a few photographs, and
tilings of the small portraits of "Labeled Faces in the Wild" that it ships. Evaluation and
calibration use different photographs and different portraits. Nearly all boxes are faces.

A box that lies just above the threshold for one model and just below it for the other is no
disagreement worth counting. So a *clear* box (confidence above 0.4) of either model agrees if the
other has a box above 0.2, of the same class, that overlaps it by more than a half (IoU):

    agreement = (clear boxes of both that the other model has) / (clear boxes of both)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.tasks.base import (
    CALIBRATION,
    EVALUATION,
    Feed,
    Floats,
    Task,
    open_session,
    random_stream,
    require,
)

SIDE = 320
PICTURES = 120
CLEAR = 0.4
FAINT = 0.2
OVERLAP = 0.45  # boxes of one class that overlap by more than this are one
MATCH = 0.5
PHOTOGRAPHS = {
    EVALUATION: ("astronaut.png", "chelsea.png", "motorcycle_left.png"),
    CALIBRATION: ("camera.png", "coffee.png", "rocket.jpg"),
}
PORTRAITS = {EVALUATION: slice(0, 50), CALIBRATION: slice(50, 100)}


@dataclass(frozen=True)
class Boxes:
    """Detections of one picture, most confident first: corners `[n, 4]` and classes `[n]`."""

    corners: Floats
    classes: npt.NDArray[np.int64]


@cache
def sources(purpose: int) -> tuple[list[Any], list[Any]]:
    """The photographs and the portraits for one purpose, as RGB pictures."""
    image = require("PIL.Image")
    folder = Path(str(require("skimage.data").__file__)).parent
    photographs = [image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS[purpose]]
    faces = np.load(folder / "lfw_subset.npy")[PORTRAITS[purpose]]
    portraits = [image.fromarray((face * 255).astype(np.uint8)).convert("RGB") for face in faces]
    return photographs, portraits


def tiled(rng: np.random.Generator, portraits: list[Any]) -> Any:
    """One, four or nine portraits in rows, as 320 x 320."""
    image = require("PIL.Image")
    canvas = image.new("RGB", (SIDE, SIDE))
    row = int(rng.integers(1, 4))
    side = SIDE // row
    for tile, index in enumerate(rng.choice(len(portraits), row * row, replace=False)):
        portrait = portraits[index].resize((side, side), image.Resampling.BICUBIC)
        canvas.paste(portrait, (side * (tile % row), side * (tile // row)))
    return canvas


def cropped(rng: np.random.Generator, photographs: list[Any]) -> Any:
    """A square crop of a photograph, at least half its shorter side, as 320 x 320."""
    image = require("PIL.Image")
    photograph = photographs[rng.integers(len(photographs))]
    side = int(min(photograph.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
    box = (left, top, left + side, top + side)
    return photograph.resize((SIDE, SIDE), image.Resampling.BILINEAR, box=box)


def pictures(count: int, rng: np.random.Generator, purpose: int) -> list[Floats]:
    """Crops and tilings by turns, half of them mirrored: inputs `[1, 3, 320, 320]` in [0, 1]."""
    photographs, portraits = sources(purpose)
    inputs = []
    for i in range(count):
        picture = cropped(rng, photographs) if i % 2 else tiled(rng, portraits)
        pixels = np.asarray(picture, np.float32)[:, :: rng.choice([-1, 1])]
        pixels = np.clip(pixels * rng.uniform(0.8, 1.2), 0, 255) / 255
        inputs.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32))
    return inputs


def overlaps(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one box `[4]` with others `[n, 4]`."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    ratio: Floats = shared / (np.prod(box[2:] - box[:2]) + areas - shared + 1e-9)
    return ratio


def find_boxes(output: Floats, confidence: float) -> Boxes:
    """Boxes from the raw output `[4 + classes, anchors]`: threshold, then non-maximum suppression.

    The first four rows are centre x, centre y, width and height, in pixels.
    """
    best, classes = output[4:].max(axis=0), output[4:].argmax(axis=0)
    order = np.argsort(-best, kind="stable")
    order = order[best[order] > confidence]
    centre, size = output[:2, order].T, output[2:4, order].T
    corners = np.hstack([centre - size / 2, centre + size / 2]).astype(np.float32)
    classes = classes[order]
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            same = (overlaps(corners[i], corners) > OVERLAP) & (classes == classes[i])
            alive[i + 1 :] &= ~same[i + 1 :]
    return Boxes(corners[alive], classes[alive])


def count_matches(ours: Boxes, theirs: Boxes) -> int:
    """How many of our boxes pair up, one to one, with theirs: same class, IoU above a half."""
    free = np.ones(len(theirs.classes), bool)
    matches = 0
    for box, label in zip(ours.corners, ours.classes, strict=True):
        iou = overlaps(box, theirs.corners) * (free & (theirs.classes == label))
        if len(iou) and iou.max() > MATCH:
            free[iou.argmax()] = False
            matches += 1
    return matches


def evaluate(model: Path, reference: Path) -> float:
    """Agreement of the clear boxes of both models over all pictures."""
    sessions = open_session(model), open_session(reference)
    matches = clear = 0
    for picture in pictures(PICTURES, random_stream("detection", EVALUATION), EVALUATION):
        outputs = [session.run(None, {"images": picture})[0][0] for session in sessions]
        for ours, theirs in (outputs, outputs[::-1]):
            boxes = find_boxes(ours, CLEAR)
            matches += count_matches(boxes, find_boxes(theirs, FAINT))
            clear += len(boxes.classes)
    return matches / clear if clear else 0.0


def calibrate(n: int, seed: int, model: Path) -> list[Feed]:
    """`n` feeds `images` `[1, 3, 320, 320]`."""
    rng = random_stream("detection", CALIBRATION, seed)
    return [{"images": x} for x in pictures(n, rng, CALIBRATION)]


TASK = Task("box agreement", calibrate, evaluate)
