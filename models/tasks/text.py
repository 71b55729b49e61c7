"""Text lines: recognition (PP-OCRv4) and orientation (PP-OCR mobile v2.0).

Lines of English words, numbers and capitals are drawn with the typeface that Pillow ships, at
several sizes, on light or dark ground, with a little blur and noise; 48 pixels high, scaled to
[-1, 1] and padded with zeros on the right, as the models were trained.

A second renderer draws other lines in other typefaces (Liberation: sans, serif and typewriter,
upright, bold and slanted), in colour, on grounds that change along the line, a little turned, more
blurred, with coarse and fine noise and as a JPEG. A setting that was chosen by the score of one can
be reported by the score of the other.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.tasks.base import (
    CALIBRATION,
    EVALUATION,
    Feed,
    Floats,
    ScoreError,
    Task,
    open_session,
    random_stream,
    require,
)

HEIGHT = 48
RECOGNITION_WIDTH = 320
ORIENTATION_WIDTH = 192
LINES = 200
BATCH = 20
VOCABULARY = (
    "about above across after again against almost alone along already also always among another "
    "answer apple around back basket because become before behind below better between beyond big "
    "black blue boat book both bread bridge bright bring brother brown build but call candle carry "
    "castle centre chair change child church city clear climb close cloud coast cold come cook "
    "copper corner could country cross dance dark daughter day deep dinner doctor dog door down "
    "dream drive early earth east eight empty engine enough evening every example eye face fall "
    "family farm father field figure find fire first fish five floor flower follow forest found "
    "four free fresh friend from full garden give glass gold good grass great green ground group "
    "half hand happy hard harvest have head hear heart heavy hill history home horse hour house "
    "hundred idea island journey just keep kind king kitchen know lake land large last late laugh "
    "leave left letter light line listen little long look love machine make many market matter "
    "maybe mean meet middle milk minute money month moon morning mother mountain move much music "
    "name near never new next night nine north nothing number ocean offer old once one only open "
    "orange order other over page paper part pass people picture place plant play point pretty "
    "quarter queen question quick quiet rain reach read ready red rest river road rock room round "
    "school sea second seven ship short side silver simple sing sister sleep small snow some "
    "south speak spring stand star stone story street strong summer sun table tell ten thank "
    "their there thing think thousand three time today together town travel tree true turn two "
    "under until valley very village voice walk wall warm watch water week west wheel when white "
    "who why wide wild wind window winter with without woman wonder wood word work world write "
    "year yellow yesterday young zebra"
)
WORDS = VOCABULARY.split()
VARIABLE = "ONNXPRUNE_FONTS"
FONTS = Path(__file__).resolve().parent.parent / "real" / "fonts"


@dataclass(frozen=True)
class Renderer:
    """stream: the name of its random streams. draw: a line's picture, or None where the line is too wide."""

    stream: str
    draw: Callable[[str, np.random.Generator], Floats | None]


def write_line(rng: np.random.Generator) -> str:
    """Two or three words or numbers, some capitalised, some with a mark after the last."""
    parts = []
    for _ in range(rng.integers(2, 4)):
        kind = rng.random()
        word = str(rng.choice(WORDS))
        if kind < 0.12:
            word = str(rng.integers(10, 10_000))
        elif kind < 0.16:
            word = word.upper()
        elif kind < 0.45:
            word = word.capitalize()
        parts.append(word)
    return " ".join(parts) + str(rng.choice(["", "", ".", "?"]))


def draw_line(text: str, rng: np.random.Generator) -> Floats | None:
    """The line as grey levels `[48, W]` in [0, 255], or None where it is wider than 320 pixels."""
    image, draw, font_of, filters = (
        require(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont", "ImageFilter")
    )
    font = font_of.load_default(size=int(rng.integers(28, 37)))
    left, top, right, bottom = font.getbbox(text)
    margin = int(rng.integers(3, 8))
    width = int(right - left) + 2 * margin
    if width > RECOGNITION_WIDTH:
        return None
    ground, ink = int(rng.integers(190, 256)), int(rng.integers(0, 80))
    if rng.random() < 0.25:
        ground, ink = ink, ground
    canvas = image.new("L", (width, HEIGHT), ground)
    y = (HEIGHT - (bottom - top)) / 2 - top + rng.integers(-2, 3)
    draw.Draw(canvas).text((margin - left, y), text, fill=ink, font=font)
    canvas = canvas.filter(filters.GaussianBlur(float(rng.uniform(0, 0.8))))
    pixels = np.asarray(canvas, np.float32) + rng.normal(0, rng.uniform(0, 10), (HEIGHT, width))
    return np.clip(pixels, 0, 255).astype(np.float32)


def typefaces() -> list[Path]:
    """The fonts that the second renderer draws with, in order of their names."""
    given = os.environ.get(VARIABLE)
    folder = Path(given) if given else FONTS
    found = sorted(folder.rglob("*.ttf"), key=lambda path: path.name)
    if not found:
        raise ScoreError(
            f"No fonts in '{folder}'; fetch them (python models/fetch.py fonts), or set {VARIABLE} to a folder of .ttf files."
        )
    return found


def uneven(low: float, high: float, width: int, rng: np.random.Generator) -> Floats:
    """Three colours of a range, one after the other along the line, that run into each other: `[48, width, 3]`."""
    image = require("PIL.Image")
    colours = image.fromarray(rng.uniform(low, high, (2, 3, 3)).astype(np.uint8))
    return np.asarray(colours.resize((width, HEIGHT), image.Resampling.BICUBIC), np.float32)


def draw_second(text: str, rng: np.random.Generator) -> Floats | None:
    """The line as colours `[48, W, 3]` in [0, 255], or None where it is wider than 320 pixels."""
    image, draw, font_of, filters = (
        require(f"PIL.{name}") for name in ("Image", "ImageDraw", "ImageFont", "ImageFilter")
    )
    faces = typefaces()
    font = font_of.truetype(str(faces[rng.integers(len(faces))]), int(rng.integers(26, 36)))
    left, top, right, bottom = font.getbbox(text)
    margin = int(rng.integers(4, 12))
    width = int(right - left) + 2 * margin
    if width > RECOGNITION_WIDTH:
        return None
    mask = image.new("L", (width, HEIGHT), 0)
    y = (HEIGHT - (bottom - top)) / 2 - top + rng.integers(-2, 3)
    draw.Draw(mask).text((margin - left, y), text, fill=255, font=font)
    steepest = min(1.5, np.degrees(3 / width))  # the ends move up and down by 1.5 pixels at most
    mask = mask.rotate(rng.uniform(-steepest, steepest), image.Resampling.BICUBIC)
    covered = np.asarray(mask, np.float32)[:, :, None] / 255
    ranges = [(150.0, 255.0), (0.0, 90.0)]
    ground, ink = (uneven(*r, width, rng) for r in (ranges if rng.random() < 0.6 else ranges[::-1]))
    coarse = rng.normal(0, rng.uniform(0, 12), (HEIGHT // 6, -(-width // 6))).repeat(6, axis=0).repeat(6, axis=1)
    pixels = ground + (ink - ground) * covered + coarse[:, :width, None]
    picture = image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    picture = picture.filter(filters.GaussianBlur(float(rng.uniform(0.2, 1.1))))
    noisy = np.asarray(picture, np.float32) + rng.normal(0, rng.uniform(0, 14), (HEIGHT, width, 3))
    stream = io.BytesIO()
    image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=int(rng.integers(40, 95)))
    with image.open(stream) as compressed:
        return np.asarray(compressed, np.float32)


FIRST = Renderer("text", draw_line)
SECOND = Renderer("text, second renderer", draw_second)


def draw_lines(
    count: int, rng: np.random.Generator, renderer: Renderer, avoid: frozenset[str] = frozenset()
) -> list[tuple[str, Floats]]:
    """`count` different lines with their pictures, none of them in `avoid`."""
    lines: dict[str, Floats] = {}
    while len(lines) < count:
        text = write_line(rng)
        pixels = renderer.draw(text, rng)
        if pixels is not None and text not in avoid:
            lines.setdefault(text, pixels)
    return list(lines.items())


def evaluation_lines(renderer: Renderer = FIRST) -> list[tuple[str, Floats]]:
    """The lines that both models are scored on."""
    return draw_lines(LINES, random_stream(renderer.stream, EVALUATION), renderer)


def calibration_lines(count: int, seed: int, renderer: Renderer = FIRST) -> list[Floats]:
    """Pictures of other lines."""
    avoid = frozenset(text for text, _ in evaluation_lines(renderer))
    return [p for _, p in draw_lines(count, random_stream(renderer.stream, CALIBRATION, seed), renderer, avoid)]


def normalised(pixels: Floats, width: int) -> Floats:
    """Grey levels `[48, W]` or colours `[48, W, 3]` as the models' input `[1, 3, 48, width]`: squeezed, scaled, padded."""
    if pixels.shape[1] > width:
        image = require("PIL.Image")
        picture = image.fromarray(pixels.astype(np.uint8))
        pixels = np.asarray(picture.resize((width, HEIGHT), image.Resampling.BILINEAR), np.float32)
    padded = np.zeros((1, 3, HEIGHT, width), np.float32)
    planes = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    padded[:, :, :, : pixels.shape[1]] = planes / 127.5 - 1
    return padded


def run_batches(session: Any, inputs: list[Floats]) -> list[Floats]:
    """The first output's row for each input, computed twenty inputs at a time."""
    rows: list[Floats] = []
    for start in range(0, len(inputs), BATCH):
        batch = np.concatenate(inputs[start : start + BATCH])
        rows.extend(session.run(None, {"x": batch})[0])
    return rows


def character_classes(session: Any, path: Path) -> list[str]:
    """The classes in the model's metadata, with the blank of CTC first and the space last."""
    metadata = session.get_modelmeta().custom_metadata_map
    if "character" not in metadata:
        raise ScoreError(f"'{path}' has no metadata entry 'character', which names its classes.")
    return ["", *metadata["character"].splitlines(), " "]


def decode(probabilities: Floats, classes: list[str]) -> str:
    """CTC by the best class of each step `[T, classes]`: repeats merge, blanks vanish."""
    best = probabilities.argmax(axis=1)
    changes = np.concatenate([[True], best[1:] != best[:-1]])
    return "".join(classes[k] for k in best[changes & (best != 0)]).strip()


def edit_distance(ours: str, theirs: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(theirs) + 1))
    for i, a in enumerate(ours, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(theirs, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def evaluate_recognition(model: Path, reference: Path, renderer: Renderer = FIRST) -> float:
    """1 - edit distance / length, over all characters of all lines; not below 0."""
    session = open_session(model)
    classes = character_classes(session, model)
    texts, pictures = zip(*evaluation_lines(renderer), strict=True)
    inputs = [normalised(p, RECOGNITION_WIDTH) for p in pictures]
    read = [decode(row, classes) for row in run_batches(session, inputs)]
    wrong = sum(edit_distance(a, b) for a, b in zip(read, texts, strict=True))
    return max(0.0, 1 - wrong / sum(map(len, texts)))


def calibrate_recognition(n: int, seed: int, model: Path, renderer: Renderer = FIRST) -> list[Feed]:
    """`n` feeds `x` `[1, 3, 48, 320]`."""
    return [{"x": normalised(p, RECOGNITION_WIDTH)} for p in calibration_lines(n, seed, renderer)]


def evaluate_orientation(model: Path, reference: Path, renderer: Renderer = FIRST) -> float:
    """The share of lines, each once upright and once turned by 180 degrees, classified rightly."""
    pictures = [p for _, p in evaluation_lines(renderer)]
    upright = [normalised(p, ORIENTATION_WIDTH) for p in pictures]
    turned = [normalised(p[::-1, ::-1], ORIENTATION_WIDTH) for p in pictures]
    predicted = np.stack(run_batches(open_session(model), upright + turned)).argmax(axis=1)
    return float((predicted == np.repeat([0, 1], len(pictures))).mean())


def calibrate_orientation(n: int, seed: int, model: Path, renderer: Renderer = FIRST) -> list[Feed]:
    """`n` feeds `x` `[1, 3, 48, 192]`, upright and turned by turns."""
    return [
        {"x": normalised(p[::-1, ::-1] if i % 2 else p, ORIENTATION_WIDTH)}
        for i, p in enumerate(calibration_lines(n, seed, renderer))
    ]


def recognition(renderer: Renderer) -> Task:
    """Recognition of the lines of one renderer."""
    return Task(
        "character accuracy",
        partial(calibrate_recognition, renderer=renderer),
        partial(evaluate_recognition, renderer=renderer),
    )


def orientation(renderer: Renderer) -> Task:
    """Orientation of the lines of one renderer."""
    return Task(
        "accuracy", partial(calibrate_orientation, renderer=renderer), partial(evaluate_orientation, renderer=renderer)
    )
