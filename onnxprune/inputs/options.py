"""How to make data of files: a list of options like that of `prune` (`choose/options.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.choose.checks import existing, number, one_of, optional, whole_number
from onnxprune.choose.field import documented, option
from onnxprune.errors import BadInputError

ORDERS = ("rgb", "bgr")
RESIZES = ("crop", "squash", "letterbox")
PRESETS = ("imagenet", "-1..1", "0..1", "0..255", "clip", "caffe", "yolo")  # what they mean: `inputs/images.py`


def _numbers(flag: str, value: Any) -> tuple[float, ...]:
    """One number, or one for each channel; also as a text with commas."""
    listed = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else list(value)
    try:
        found = tuple(float(x) for x in listed)
    except (TypeError, ValueError):
        found = ()
    if len(found) not in (1, 3, 4):
        raise BadInputError(f"{flag} takes a number, or one for each channel with commas, not {value!r}.")
    return found * 3 if len(found) == 1 else found


def _size(flag: str, value: Any) -> tuple[int, int]:
    listed = str(value).lower().replace("x", ",").split(",") if isinstance(value, str | int) else list(value)
    try:
        found = tuple(int(x) for x in listed)
    except (TypeError, ValueError):
        found = ()
    if len(found) not in (1, 2) or any(not 1 <= d <= 1 << 14 for d in found):
        raise BadInputError(f"{flag} takes height and width in pixels, such as 224 or 480,640, not {value!r}.")
    return (found[0], found[-1])


@documented
@dataclass(frozen=True)
class DataOptions:
    """How pictures, recordings, texts and tables become arrays."""

    samples: int = option(
        256, whole_number(1), "Take at most so many, spread evenly over the files.", cli={"type": int}
    )
    preset: str | None = option(
        None,
        optional(one_of(*PRESETS)),
        "How pixels become numbers, and pictures come to size.",
        cli={"choices": PRESETS},
        by_default="worked out from the model, or asked for",
    )
    scale: float | None = option(
        None,
        optional(number(0, above=True, span="above zero")),
        "Multiply pixels (0 to 255) by this first.",
        cli={"type": float},
        by_default="1/255 beside --mean or --std",
    )
    mean: tuple[float, ...] | None = option(
        None, optional(_numbers), "Then subtract this.", cli={"metavar": "N|N,N,N"}, by_default="0"
    )
    std: tuple[float, ...] | None = option(
        None, optional(_numbers), "Then divide by this.", cli={"metavar": "N|N,N,N"}, by_default="1"
    )
    order: str | None = option(
        None,
        optional(one_of(*ORDERS)),
        "Order of the channels.",
        cli={"choices": ORDERS},
        by_default="as the preset has it, else rgb",
    )
    resize: str | None = option(
        None,
        optional(one_of(*RESIZES)),
        "How a picture comes to the model's size: its middle, squashed, or whole with grey around.",
        cli={"choices": RESIZES},
        by_default="as the preset has it, else crop",
    )
    size: tuple[int, int] | None = option(
        None,
        optional(_size),
        "Height and width, where the model's are dynamic.",
        cli={"metavar": "N|H,W"},
        by_default="224",
    )
    rate: int | None = option(
        None,
        optional(whole_number(1)),
        "Samples a second that the model takes.",
        cli={"type": int},
        by_default="as the recordings have",
    )
    seconds: float | None = option(
        None,
        optional(number(0, above=True, span="above zero")),
        "Length of a piece, where the model's is dynamic.",
        cli={"type": float},
        by_default="1",
    )
    tokenizer: str | Path | None = option(
        None,
        optional(existing("a tokenizer.json")),
        "The tokenizer.json that belongs to the model.",
        cli={"path": True, "metavar": "FILE"},
        by_default="the one beside the model",
    )
    length: int | None = option(
        None,
        optional(whole_number(1)),
        "Tokens of a text at most, where the model's length is dynamic.",
        cli={"type": int},
        by_default="128",
    )
    field: str = option(
        "text", lambda flag, value: str(value), "Of .jsonl files: where the text is.", cli={"metavar": "NAME"}
    )
