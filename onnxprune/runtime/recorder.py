"""Records what a session is fed in the user's own program, so that a model is calibrated on what it meets in use.

session = onnxprune.record(onnxruntime.InferenceSession("model.onnx"), "calib.npz")
...                                          # the program as it is; the file is written when it ends, or by session.close()
"""

from __future__ import annotations

import atexit
import os
import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array
from onnxprune.model.files import check_outputs, write_arrays


class Recorder:
    """A session that keeps some of what it is fed. Everything else is the session's own, results too.

    samples: at most so many are kept, each call with the same chance (reservoir sampling, Vitter 1985), drawn by `seed`. A call whose
    inputs all have as many rows, along a first axis that the model leaves open, is as many samples. Calls of other sizes than most are
    left out of a .npz file; a path without that suffix is a folder, with a file for each.
    """

    def __init__(self, session: Any, output: str | os.PathLike[str], samples: int = 256, seed: int = 0) -> None:
        if not hasattr(session, "run") or not hasattr(session, "get_inputs"):
            raise BadInputError(f"record takes an onnxruntime.InferenceSession, not {type(session).__name__}.")
        if samples < 1:
            raise BadInputError(f"samples must be at least 1, not {samples}.")
        self._session, self._output, self._most = session, Path(output), samples
        self._is_folder = self._output.suffix != ".npz"
        check_outputs({"output": self._output / "0.npz" if self._is_folder else self._output})
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._kept: list[dict[str, Array]] = []
        self._seen, self._closed = 0, False
        self._open = {i.name: bool(i.shape) and not isinstance(i.shape[0], int) for i in session.get_inputs()}
        atexit.register(self.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
        """As the session's."""
        self._keep(input_feed)
        return self._session.run(output_names, input_feed, run_options)

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """As the session's; what was bound cannot be read back, so nothing is kept of it."""
        self._session.run_with_iobinding(iobinding, run_options)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def seen(self) -> int:
        """Samples that went by."""
        return self._seen

    def _keep(self, feed: Mapping[str, Any]) -> None:
        try:
            arrays = {name: np.array(value) for name, value in feed.items()}
        except (TypeError, ValueError):  # an OrtValue on a device, a sequence: not for a file of arrays
            return
        if any(x.dtype.kind not in "fiub" for x in arrays.values()):
            return
        with self._lock:
            for sample in self._split(arrays):
                self._seen += 1
                if len(self._kept) < self._most:
                    self._kept.append(sample)
                elif (place := self._random.randrange(self._seen)) < self._most:
                    self._kept[place] = sample

    def _split(self, arrays: dict[str, Array]) -> list[dict[str, Array]]:
        rows = {len(x) if x.ndim else 0 for x in arrays.values()}
        if len(rows) != 1 or not all(self._open.get(n, False) for n in arrays) or not (count := rows.pop()):
            return [arrays]
        return [{n: x[k : k + 1].copy() for n, x in arrays.items()} for k in range(count)]

    def close(self) -> list[Path]:
        """Write what was kept; once. The paths that were written."""
        with self._lock:
            if self._closed or not self._kept:
                self._closed = True
                return []
            self._closed = True
            atexit.unregister(self.close)
            if self._is_folder:
                width = len(str(len(self._kept)))
                files = {self._output / f"{k:0{width}}.npz": sample for k, sample in enumerate(self._kept)}
            else:
                shapes = [tuple(sorted((n, x.shape) for n, x in s.items())) for s in self._kept]
                usual = max(set(shapes), key=shapes.count)
                same = [s for s, shape in zip(self._kept, shapes, strict=True) if shape == usual]
                files = {
                    self._output: {
                        n: np.concatenate([s[n] for s in same]) if same[0][n].ndim else same[0][n] for n in same[0]
                    }
                }
            for path, arrays in files.items():
                write_arrays(path, arrays)
            return list(files)


def record(session: Any, output: str | os.PathLike[str], samples: int = 256, seed: int = 0) -> Any:
    """The session, which from now on keeps what it is fed (`Recorder`), and writes it to `output` when the program ends."""
    return Recorder(session, output, samples, seed)


def run_recorded(
    program: Path, arguments: Sequence[str], output: Path, samples: int = 256, seed: int = 0
) -> list[Path]:
    """Run the user's own program as `python PROGRAM ARGUMENTS` does, with every session that it makes recorded; the files written.

    The first session writes to `output`, the next ones beside it, with a number.
    """
    import runpy
    import sys

    import onnxruntime

    made: list[Recorder] = []
    own = onnxruntime.InferenceSession

    def recorded(*given: Any, **options: Any) -> Any:
        number = len(made) + 1
        place = output if number == 1 else output.with_name(f"{output.stem}-{number}{output.suffix}")
        made.append(Recorder(own(*given, **options), place, samples, seed))
        return made[-1]

    before = sys.argv, sys.path[0]
    onnxruntime.InferenceSession = recorded
    sys.argv, sys.path[0] = [str(program), *arguments], str(program.parent)
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise BadInputError(f"{program} ended with exit code {end.code}.") from None
    finally:
        onnxruntime.InferenceSession = own
        sys.argv, sys.path[0] = before
        written = [path for recorder in made for path in recorder.close()]
    return written
