"""`onnxprune data`: from files that a user has to the inputs that `--data` takes.

onnxprune.data("photos/", model="model.onnx", output="calib.npz", preset="imagenet")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import runtime
from onnxprune.analyse.feeds import load_data
from onnxprune.analyse.sources import GROUPS
from onnxprune.choose.field import checked
from onnxprune.clock import Clock, Progress, silent
from onnxprune.errors import BadInputError, quoted
from onnxprune.groups.observation import Array
from onnxprune.inputs import images, sounds, tables, texts
from onnxprune.inputs.guess import guess
from onnxprune.inputs.images import PRESETS, Preset
from onnxprune.inputs.options import DataOptions
from onnxprune.inputs.wanted import ARRAYS, SUFFIXES, Kind, Wanted, files_below, kind_of, wanted_of
from onnxprune.model.files import check_outputs, write_arrays
from onnxprune.model.load import Source, load
from onnxprune.model.loaded import LoadedModel
from onnxprune.words import counted, were

SIZE = (224, 224)
GUESSED = 64  # pictures that are read to find the preset


@dataclass
class DataReport:
    """What was made: arrays by input, and what a person should know of them. skipped: files that were not read, and why."""

    arrays: dict[str, Array]
    samples: int = 0
    notes: list[str] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        rows = []
        for name, x in self.arrays.items():
            if name != GROUPS:
                rows.append(
                    f"{name}: {list(x.shape)} of {x.dtype}, from {x.min():.4g} to {x.max():.4g}, mean {x.mean():.4g}"
                )
        rows += self.notes
        if self.skipped:
            shown = ", ".join(f"{p.name} ({why})" for p, why in self.skipped[:3])
            rows.append(f"{were(len(self.skipped), 'file')} left out: {shown}{', …' if len(self.skipped) > 3 else ''}")
        return rows


def data(
    source: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    *,
    model: Source,
    output: str | PathLike[str] | None = None,
    inputs: Mapping[str, str | PathLike[str]] | None = None,
    sheet: str | PathLike[str] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> DataReport:
    """Make inputs of files: pictures, recordings, texts or a table, as the model takes them.

    source: files or folders (all below them is read) for the inputs that `inputs` does not name. inputs: a source by input name.
    output: a .npz file for `--data`. sheet: a PNG file that shows the pictures as the model sees them. options: the fields of
    `DataOptions`. Raises `BadInputError`, also where it is not certain how pixels become numbers.
    """
    settings = checked(DataOptions, options)
    given = [] if source is None else [source] if isinstance(source, str | PathLike) else list(source)
    named = {name: [Path(p)] for name, p in (inputs or {}).items()}
    check_outputs({"-o": output, "--sheet": sheet}, (model, *given, *(p for ps in named.values() for p in ps)))
    if output is not None and Path(output).suffix != ".npz":
        raise BadInputError(f"-o {output} must end in .npz.")
    clock = Clock(progress)
    clock("load")
    loaded = load(model)
    making = _Making(loaded, settings, clock, None if sheet is None else Path(sheet))
    left = [w for w in making.wanted if w.name not in named]
    for name, paths in named.items():
        if name not in {w.name for w in making.wanted}:
            raise BadInputError(
                f"--input {quoted(name)} is no input of the model; it has {', '.join(str(w) for w in making.wanted)}."
            )
        making.add([next(w for w in making.wanted if w.name == name)], paths)
    if given and left:
        making.add(left, [Path(p) for p in given])
    elif left:
        raise BadInputError(
            f"Nothing feeds the input {left[0]}; give a folder or file, or --input {left[0].name}=PATH."
        )
    elif given:
        raise BadInputError(f"All inputs have a source by --input; leave out {given[0]}.")
    report = making.finished()
    clock("write")
    if output is not None:
        write_arrays(Path(output), report.arrays)
    clock.stop()
    return report


class _Making:
    """Arrays of one model's inputs, one source after the other."""

    def __init__(self, loaded: LoadedModel, settings: DataOptions, clock: Clock, sheet: Path | None) -> None:
        self.loaded, self.settings, self.clock, self.sheet = loaded, settings, clock, sheet
        self.wanted = wanted_of(runtime.graph_inputs(loaded.proto))
        self.report = DataReport({})
        self.groups: Array | None = None

    def add(self, wanted: Sequence[Wanted], paths: Sequence[Path]) -> None:
        files = [p for path in paths for p in files_below(path)]
        if files and all(p.suffix.lower() in ARRAYS for p in files):
            return self._arrays(wanted, paths)
        kind = kind_of(files, paths[0])
        files = [p for p in files if p.suffix.lower() in SUFFIXES[kind]]
        how = {"images": self._images, "sounds": self._sounds, "texts": self._texts, "table": self._table}
        self.clock(f"read {kind}")
        return how[kind](wanted, files)

    def finished(self) -> DataReport:
        """All inputs with as many samples as each other. Raises `BadInputError` where they have not."""
        report = self.report
        counts = {n: len(x) for n, x in report.arrays.items()}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{n} {c}" for n, c in counts.items())
            raise BadInputError(f"The inputs have different numbers of samples: {shown}; give as many of each.")
        count = next(iter(counts.values()))
        keep = _spread(count, self.settings.samples)
        report.arrays = {w.name: report.arrays[w.name][keep] for w in self.wanted}
        report.samples = len(keep)
        if len(keep) < count:
            report.notes.append(f"{len(keep)} of {counted(count, 'sample')}, spread evenly (--samples)")
        if self.groups is not None and len(self.groups) == count and GROUPS not in report.arrays:
            report.arrays[GROUPS] = self.groups[keep]
        return report

    # -- kinds

    def _one(self, wanted: Sequence[Wanted], kind: Kind) -> Wanted:
        if len(wanted) != 1:
            raise BadInputError(
                f"The model has {len(wanted)} inputs to feed with {kind}: {', '.join(str(w) for w in wanted)}. "
                "Say which with --input NAME=PATH."
            )
        return wanted[0]

    def _images(self, wanted: Sequence[Wanted], files: list[Path]) -> None:
        settings = self.settings
        takes = [w for w in wanted if w.layout] or list(wanted)
        w = self._one(takes if len(takes) == 1 and len(wanted) == 1 else wanted, "images")
        if w.layout is None:
            raise BadInputError(
                f"{w} takes no pictures ([n, channels, height, width] or [n, height, width, channels])."
            )
        asked = settings.size or SIZE
        size = (w.size[0] or asked[0], w.size[1] or asked[1])
        if settings.size is not None and size != settings.size:
            raise BadInputError(f"{w} takes {size[0]} x {size[1]} pixels; leave --size out.")
        if settings.size is None and None in w.size:
            self.report.notes.append(f"size: {size[0]} x {size[1]}, as the model's is dynamic (--size)")
        files = [files[k] for k in _spread(len(files), settings.samples)]
        preset = self._preset(w, files, size)
        pictures = images.read(files, size, w.channels, preset.resize, self.clock.share)
        self.report.skipped += pictures.skipped
        values = preset(pictures.pixels)
        self.report.arrays[w.name] = images.laid_out(values, w)
        self.report.notes.append(f"pixels: {preset}, {w.layout}, {size[0]} x {size[1]}")
        if self.sheet is not None:
            self.clock("sheet")
            images.sheet(values, preset, pictures.files, self.sheet)

    def _preset(self, w: Wanted, files: list[Path], size: tuple[int, int]) -> Preset:
        """As the user says, or as the model shows. Raises `BadInputError` where neither does."""
        s = self.settings
        if s.preset is not None:
            base = PRESETS[s.preset]
        elif s.mean is not None or s.std is not None or s.scale is not None:
            base = PRESETS["0..1"]
        else:
            base = self._guessed(w, files, size)
        return replace(
            base,
            scale=s.scale or base.scale,
            mean=s.mean or base.mean,
            std=s.std or base.std,
            order=s.order or base.order,
            resize=s.resize or base.resize,
        )

    def _guessed(self, w: Wanted, files: list[Path], size: tuple[int, int]) -> Preset:
        self.clock("find the preset")
        few = [files[k] for k in _spread(len(files), GUESSED)]
        pixels = images.read(few, size, w.channels, self.settings.resize or "crop", self.clock.share).pixels
        guessed = guess(self.loaded, w, pixels, self._others(w))
        if guessed.preset is None:
            likely = [n for n, _ in guessed.figures[:4]] or list(PRESETS)
            raise BadInputError(
                f"How pixels become numbers is not certain: {guessed.reason}. Look it up where the model comes from, and give --preset "
                f"({', '.join(likely)}, …), or --scale, --mean and --std."
            )
        self.report.notes.append(f"preset: {guessed.preset.name}, as {guessed.reason}")
        return guessed.preset

    def _others(self, w: Wanted) -> dict[str, Array]:
        """One sample of what else the model is fed."""
        others = [o for o in self.wanted if o.name != w.name]
        known = {
            n: x[: o.dims[0] or 1]
            for o in others
            if (n := o.name) in self.report.arrays
            for x in [self.report.arrays[n]]
        }
        return known if len(known) == len(others) else {}

    def _sounds(self, wanted: Sequence[Wanted], files: list[Path]) -> None:
        w = self._one(wanted, "sounds")
        found = sounds.read(files, w, self.settings.rate, self.settings.seconds, self.clock.share)
        self.report.arrays[w.name], self.groups = found.values, found.groups
        self.report.skipped += found.skipped
        self.report.notes.append(f"rate: {found.note}")

    def _texts(self, wanted: Sequence[Wanted], files: list[Path]) -> None:
        tokenizer = self.settings.tokenizer
        if tokenizer is None and self.loaded.folder is not None and (self.loaded.folder / "tokenizer.json").exists():
            tokenizer = self.loaded.folder / "tokenizer.json"
        if tokenizer is None:
            raise BadInputError("Texts need the model's tokenizer.json: give it with --tokenizer.")
        lines = texts.lines(files, self.settings.field)
        lines = [lines[k] for k in _spread(len(lines), self.settings.samples)]
        found = texts.tokens(lines, wanted, Path(tokenizer), self.settings.length)
        self.report.arrays |= found
        self.report.notes.append(f"tokens: {tokenizer}, {next(iter(found.values())).shape[1]} a text")

    def _table(self, wanted: Sequence[Wanted], files: list[Path]) -> None:
        self.report.arrays |= tables.read(files, wanted)

    def _arrays(self, wanted: Sequence[Wanted], paths: Sequence[Path]) -> None:
        """Arrays as they are, checked against the model."""
        values = [v for v in runtime.graph_inputs(self.loaded.proto) if v.name in {w.name for w in wanted}]
        feeds = [f for p in paths for f in load_data(p, values)]
        for w in wanted:
            parts = [f[w.name] for f in feeds]
            if len({p.shape[1:] for p in parts}) > 1:
                raise BadInputError(
                    f"{paths[0]}: the arrays {quoted(w.name)} have different sizes; give the folder to --data as it is."
                )
            self.report.arrays[w.name] = np.concatenate(parts)


def _spread(count: int, most: int) -> list[int]:
    return list(range(count)) if count <= most else (np.arange(most) * count // most).tolist()
