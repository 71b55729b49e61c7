"""Text lines: recognition (PP-OCRv4) and orientation (PP-OCR mobile v2.0).

Lines of English words, numbers and capitals are drawn with the typeface that Pillow ships, at
several sizes, on light or dark ground, with a little blur and noise; 48 pixels high, scaled to
[-1, 1] and padded with zeros on the right, as the models were trained.
"""

from __future__ import annotations

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


def draw_lines(count: int, rng: np.random.Generator, avoid: frozenset[str] = frozenset()) -> list[tuple[str, Floats]]:
    """`count` different lines with their pictures, none of them in `avoid`."""
    lines: dict[str, Floats] = {}
    while len(lines) < count:
        text = write_line(rng)
        pixels = draw_line(text, rng)
        if pixels is not None and text not in avoid:
            lines.setdefault(text, pixels)
    return list(lines.items())


def evaluation_lines() -> list[tuple[str, Floats]]:
    """The lines that both models are scored on."""
    return draw_lines(LINES, random_stream("text", EVALUATION))


def calibration_lines(count: int, seed: int) -> list[Floats]:
    """Pictures of other lines."""
    avoid = frozenset(text for text, _ in evaluation_lines())
    return [p for _, p in draw_lines(count, random_stream("text", CALIBRATION, seed), avoid)]


def normalised(pixels: Floats, width: int) -> Floats:
    """Grey levels `[48, W]` as the models' input `[1, 3, 48, width]`: squeezed, scaled, padded."""
    if pixels.shape[1] > width:
        image = require("PIL.Image")
        picture = image.fromarray(pixels.astype(np.uint8))
        pixels = np.asarray(picture.resize((width, HEIGHT), image.Resampling.BILINEAR), np.float32)
    padded = np.zeros((1, 3, HEIGHT, width), np.float32)
    padded[:, :, :, : pixels.shape[1]] = pixels / 127.5 - 1
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


def evaluate_recognition(model: Path, reference: Path) -> float:
    """1 - edit distance / length, over all characters of all lines; not below 0."""
    session = open_session(model)
    classes = character_classes(session, model)
    texts, pictures = zip(*evaluation_lines(), strict=True)
    inputs = [normalised(p, RECOGNITION_WIDTH) for p in pictures]
    read = [decode(row, classes) for row in run_batches(session, inputs)]
    wrong = sum(edit_distance(a, b) for a, b in zip(read, texts, strict=True))
    return max(0.0, 1 - wrong / sum(map(len, texts)))


def calibrate_recognition(n: int, seed: int, model: Path) -> list[Feed]:
    """`n` feeds `x` `[1, 3, 48, 320]`."""
    return [{"x": normalised(p, RECOGNITION_WIDTH)} for p in calibration_lines(n, seed)]


def evaluate_orientation(model: Path, reference: Path) -> float:
    """The share of lines, each once upright and once turned by 180 degrees, classified rightly."""
    pictures = [p for _, p in evaluation_lines()]
    upright = [normalised(p, ORIENTATION_WIDTH) for p in pictures]
    turned = [normalised(p[::-1, ::-1], ORIENTATION_WIDTH) for p in pictures]
    predicted = np.stack(run_batches(open_session(model), upright + turned)).argmax(axis=1)
    return float((predicted == np.repeat([0, 1], len(pictures))).mean())


def calibrate_orientation(n: int, seed: int, model: Path) -> list[Feed]:
    """`n` feeds `x` `[1, 3, 48, 192]`, upright and turned by turns."""
    return [
        {"x": normalised(p[::-1, ::-1] if i % 2 else p, ORIENTATION_WIDTH)}
        for i, p in enumerate(calibration_lines(n, seed))
    ]


RECOGNITION = Task("character accuracy", calibrate_recognition, evaluate_recognition)
ORIENTATION = Task("accuracy", calibrate_orientation, evaluate_orientation)
