"""Pictures as a model is fed them: read, sized, and normalized as a preset says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array
from onnxprune.inputs.wanted import IMAGES, Wanted, cast
from onnxprune.model.files import write_bytes

GREY = 114  # around a letterbox, as YOLO's own code has it
LARGEST = 1 << 28  # pixels of a picture that is read


@dataclass(frozen=True)
class Preset:
    """value = (pixel * scale - mean) / std, by channel; order: of the channels; resize: how a picture comes to the input's size.

    pixel: 0 to 255.
    """

    name: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: str = "rgb"
    resize: str = "crop"

    def __call__(self, pixels: Array) -> Array:
        """pixels: `[n, h, w, c]`, 0 to 255, RGB, grey or RGBA -> the same shape, normalized."""
        mean, std = self._by_channel(pixels.shape[-1])
        return np.asarray((self._ordered(pixels).astype(np.float32) * np.float32(self.scale) - mean) / std, np.float32)

    def back(self, values: Array) -> Array:
        """Pixels, as far as they were kept."""
        mean, std = self._by_channel(values.shape[-1])
        made = self._ordered((values.astype(np.float32) * std + mean) / np.float32(self.scale))
        return np.asarray(np.clip(np.rint(made), 0, 255), np.uint8)

    def _by_channel(self, channels: int) -> tuple[Array, Array]:
        """Mean and deviation of each; of one channel, those of all together."""
        if channels == 1:
            return np.array([np.mean(self.mean)], np.float32), np.array([np.mean(self.std)], np.float32)
        return np.resize(np.array(self.mean, np.float32), channels), np.resize(np.array(self.std, np.float32), channels)

    def _ordered(self, values: Array) -> Array:
        """From RGB to the model's order, or back."""
        channels = values.shape[-1]
        return values[..., [2, 1, 0, *range(3, channels)]] if self.order == "bgr" and channels >= 3 else values

    def __str__(self) -> str:
        if self.scale == 1 and set(self.mean) == {0} and set(self.std) == {1}:
            formula = "pixels as they are, 0 to 255"
        else:
            formula = f"(pixel * {self.scale:.6g} - {_short(self.mean)}) / {_short(self.std)}"
        return f"{formula}, {self.order.upper()}, {self.resize}"


def _short(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{v:g}' for v in values)})"


ONE = 1 / 255
PRESETS = {
    p.name: p
    for p in (
        Preset("imagenet", ONE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        Preset("-1..1", 1 / 127.5, (1.0,) * 3, (1.0,) * 3),
        Preset("0..1", ONE, (0.0,) * 3, (1.0,) * 3),
        Preset("0..255", 1.0, (0.0,) * 3, (1.0,) * 3),
        Preset("clip", ONE, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        Preset("caffe", 1.0, (103.939, 116.779, 123.68), (1.0,) * 3, "bgr"),
        Preset("yolo", ONE, (0.0,) * 3, (1.0,) * 3, resize="letterbox"),
    )
}
"""torchvision's and timm's; Keras's `tf` mode (EfficientNet-Lite's (x - 127) / 128 is the same to 0.004); plain; raw; OpenAI's CLIP;
Keras's `caffe` mode; Ultralytics'."""


def pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise BadInputError("Pictures are read by Pillow; install it: pip install 'onnxprune[data]'.") from None
    Image.MAX_IMAGE_PIXELS = LARGEST
    return Image


@dataclass(frozen=True)
class Pictures:
    """Pictures of the input's size: `[n, h, w, c]`, 0 to 255. files: of each. skipped: files that were not read, and why."""

    pixels: Array
    files: tuple[Path, ...]
    skipped: tuple[tuple[Path, str], ...]


def read(
    files: Sequence[Path], size: tuple[int, int], channels: int, resize: str, told: Callable[[float], None]
) -> Pictures:
    """Raises `BadInputError` where none can be read."""
    image = pillow()
    made, kept, skipped = [], [], []
    for k, path in enumerate(files):
        if path.suffix.lower() in IMAGES:
            try:
                with image.open(path) as opened:
                    made.append(sized(opened, size, channels, resize))
                kept.append(path)
            except (OSError, ValueError, SyntaxError, EOFError, image.DecompressionBombError) as problem:
                skipped.append((path, " ".join(str(problem).split())[:80] or type(problem).__name__))
        told((k + 1) / len(files))
    if not made:
        raise BadInputError(
            f"None of {len(skipped)} pictures can be read; the first: {skipped[0][0]}: {skipped[0][1]}."
        )
    return Pictures(np.stack(made), tuple(kept), tuple(skipped))


def sized(opened: Any, size: tuple[int, int], channels: int, resize: str) -> Array:
    """`[h, w, c]`, turned as the camera says. crop: the middle, of the input's shape; letterbox: all of it, with grey around."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(opened)
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):  # more than 8 bits: to 0..255 by the range that is there
        values = np.asarray(picture, np.float32)
        top = 65535.0 if values.max() > 255 else 255.0
        picture = Image.fromarray(np.clip(values * (255 / top), 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if channels != 4:
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    height, width = size
    if resize == "crop":
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    elif resize == "squash":
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    else:
        picture = ImageOps.pad(
            picture, (width, height), Image.Resampling.BILINEAR, color=(GREY,) * channels if channels > 1 else GREY
        )
    found = np.asarray(picture)
    return found[..., None] if found.ndim == 2 else found


def laid_out(values: Array, wanted: Wanted) -> Array:
    """`[n, h, w, c]` as the input has its axes and its element type."""
    return cast(np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if wanted.layout == "NCHW" else values, wanted)


def sheet(values: Array, preset: Preset, files: Sequence[Path], path: Path, most: int = 48, edge: int = 128) -> None:
    """A contact sheet of what the model is fed, turned back to pixels, with file names and ranges."""
    import io

    from PIL import Image, ImageDraw

    count = min(most, len(values))
    columns = min(8, count)
    rows = -(-count // columns)
    made = Image.new("RGB", (columns * (edge + 8) + 8, rows * (edge + 36) + 8), "white")
    draw = ImageDraw.Draw(made)
    chosen = np.arange(count) * len(values) // count
    for place, k in enumerate(chosen.tolist()):
        pixels = preset.back(values[k])
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])
        picture.thumbnail((edge, edge))
        x, y = 8 + place % columns * (edge + 8), 8 + place // columns * (edge + 36)
        made.paste(picture, (x, y))
        name = files[k].name if len(files[k].name) <= 20 else f"…{files[k].name[-19:]}"
        draw.text((x, y + edge + 2), name.encode("latin-1", "replace").decode("latin-1"), fill="black")
        draw.text((x, y + edge + 14), f"{values[k].min():.3g} to {values[k].max():.3g}", fill="grey")
    held = io.BytesIO()
    made.save(held, "PNG")
    write_bytes(path, held.getvalue())
