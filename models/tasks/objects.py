"""Objects (EfficientNet-Lite0, ImageNet): is the object in the picture named rightly?

The objects are photographs without a background, which Debian's package tuxpaint-stamps-default
holds, each in a file that says what it shows. A picture is one of them, at a random size, angle and
side, on a smooth coloured ground. `objects.json` gives, for each object whose name is a class of
ImageNet, the classes that are right. These are only tested on, and their labels come from their
names, not from a model. Of the other objects two thirds are to calibrate on and one third is to
choose settings on; objects whose names begin alike, such as `grave-a` and `grave-b`, go together.

| part | objects | for |
|---|---|---|
| `TEST` | named by `objects.json` | accuracy, the only figure to report |
| `FIT` | two thirds of the others | calibration |
| `CHOOSE` | the other third | agreement with the unpruned model, where a setting is chosen |
| `SAME` | those of `TEST`, in other pictures | how much better calibration on the tested objects would be |
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.tasks.base import EVALUATION, Feed, Floats, ScoreError, Task, open_session, random_stream, require

TEST, FIT, CHOOSE, SAME = "test", "fit", "choose", "same"
PARTS = (TEST, FIT, CHOOSE, SAME)  # a part's place is what its random stream is called; that of TEST is EVALUATION
SIDE = 224
TESTED = 600
BATCH = 20
VARIABLE = "ONNXPRUNE_STAMPS"
STAMPS = Path(__file__).resolve().parent.parent / "real" / "stamps"
NO_PHOTOGRAPHS = frozenset({"cartoon", "symbols", "flags"})
RIGHT: dict[str, list[int]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Pictures:
    """x: inputs `[n, 3, 224, 224]`. sources: the number of the object in each, as in `names`. names: the part's objects."""

    x: Floats
    sources: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def labels(self) -> npt.NDArray[np.int64]:
        """The right classes of each picture of a tested object, `[n, most]`; -1 where it has fewer."""
        right = [RIGHT[name] for name in self.names]
        rows = np.full((len(right), max(map(len, RIGHT.values()))), -1)
        for row, classes in zip(rows, right, strict=True):
            row[: len(classes)] = classes
        return rows[self.sources]


def folder() -> Path:
    """Where the photographs lie: what the environment says, or where `models/fetch.py` puts them."""
    given = os.environ.get(VARIABLE)
    path = Path(given) if given else STAMPS
    if not path.is_dir():
        raise ScoreError(
            f"No photographs at '{path}'; fetch them (python models/fetch.py stamps), or set {VARIABLE} to a folder of them."
        )
    return path


def find_names(root: Path) -> list[str]:
    """The photographs below a folder, without drawings, flags and mirror images, by name, sorted."""
    paths = (path.relative_to(root).with_suffix("") for path in root.rglob("*.png"))
    return sorted(p.as_posix() for p in paths if not NO_PHOTOGRAPHS & set(p.parts) and not p.name.endswith("_mirror"))


def family(name: str) -> str:
    """What the file's name begins with: `grave-a` and `grave-b` are of one family."""
    found = re.match(r"[A-Za-z]+", name.rpartition("/")[2])
    return found[0].lower() if found else name


def objects_of(part: str, names: list[str]) -> tuple[str, ...]:
    """The objects of one part, of all those there are."""
    if part in (TEST, SAME):
        if missing := sorted(RIGHT.keys() - set(names)):
            raise ScoreError(f"There is no photograph '{missing[0]}.png', which models/tasks/objects.json names.")
        return tuple(name for name in names if name in RIGHT)
    others = [name for name in names if name not in RIGHT]
    families = sorted({family(name) for name in others})
    random_stream("objects", EVALUATION).shuffle(families)
    chosen = set(families[::3])
    return tuple(name for name in others if (family(name) in chosen) == (part == CHOOSE))


@cache
def cut_out(path: Path) -> Any:
    """A photograph with its transparency, without the empty rim."""
    with require("PIL.Image").open(path) as picture:
        whole = picture.convert("RGBA")
    return whole.crop(whole.getchannel("A").getbbox())


def ground(rng: np.random.Generator) -> Any:
    """A smooth ground: a few random colours, close to one another, that run into each other."""
    image = require("PIL.Image")
    colours = rng.uniform(40, 215, 3) + rng.normal(0, 25, (3, 3, 3))
    coarse = image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    return coarse.resize((SIDE, SIDE), image.Resampling.BICUBIC)


def paste(stamp: Any, rng: np.random.Generator) -> Floats:
    """The object on a ground as the model's input `[3, 224, 224]`: its longer side is half the picture or more."""
    image = require("PIL.Image")
    longer = rng.uniform(0.5, 0.95) * SIDE
    size = [max(1, round(length * longer / max(stamp.size))) for length in stamp.size]
    scaled = stamp.resize(size, image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        scaled = scaled.transpose(image.Transpose.FLIP_LEFT_RIGHT)
    turned = scaled.rotate(rng.uniform(-20, 20), image.Resampling.BICUBIC, expand=True)
    left, top = (round(rng.uniform(0.25, 0.75) * (SIDE - length)) for length in turned.size)
    canvas = ground(rng)
    canvas.paste(turned, (left, top), turned)
    pixels = np.clip(np.asarray(canvas, np.float32) * rng.uniform(0.85, 1.15), 0, 255)
    return ((pixels - 127) / 128).transpose(2, 0, 1).astype(np.float32)


def pictures(part: str, count: int, seed: int = 0) -> Pictures:
    """`count` pictures of the objects of a part, all objects equally often, give or take one."""
    root = folder()
    names = objects_of(part, find_names(root))
    if not names:
        raise ScoreError(f"'{root}' holds no photographs for '{part}'.")
    rng = random_stream("objects", PARTS.index(part), seed)
    rounds = [rng.permutation(len(names)) for _ in range(-(-count // len(names)))]
    sources = np.concatenate([*rounds, np.empty(0, int)])[:count].astype(np.int64)
    x = np.empty((count, 3, SIDE, SIDE), np.float32)
    for row, source in zip(x, sources, strict=True):
        row[:] = paste(cut_out(root / f"{names[source]}.png"), rng)
    return Pictures(x, sources, names)


def logits(model: Path, x: Floats) -> Floats:
    """The model's output for each picture `[n, classes]`, twenty at a time."""
    session = open_session(model)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + BATCH]})[0] for i in range(0, len(x), BATCH)])


def evaluate(model: Path, reference: Path) -> float:
    """The share of 600 pictures of the tested objects whose largest logit is at a right class."""
    tested = pictures(TEST, TESTED)
    best = logits(model, tested.x).argmax(axis=1)
    return float((best[:, None] == tested.labels()).any(axis=1).mean())


def calibrate(n: int, seed: int, model: Path) -> list[Feed]:
    """`n` feeds `x` `[1, 3, 224, 224]`, of the objects to calibrate on."""
    return [{"x": x[None]} for x in pictures(FIT, n, seed).x]


def agreement_on_choice(model: Path, reference: Path, count: int = 300) -> float:
    """The share of pictures of the objects to choose on whose largest logit is where the unpruned model's is."""
    x = pictures(CHOOSE, count).x
    ours, theirs = (logits(path, x).argmax(axis=1) for path in (model, reference))
    return float((ours == theirs).mean())


TASK = Task("top-1 accuracy", calibrate, evaluate)
