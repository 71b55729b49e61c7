"""What `--metric` names: how much worse a model is than the original, on held-out samples.

`kl`, `cosine` and `top1` compare with the original's outputs (`calibrate/damage.py`). `module:function` is the user's own: it gets two
dictionaries, the model's outputs and all arrays of the data file (labels among them), for the same samples, and returns a score,
larger is better; the damage is the original's score less the model's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.analyse.samples import Samples
from onnxprune.calibrate.calibration import Calibration
from onnxprune.calibrate.damage import METRICS, NAMED, Metric, Outputs
from onnxprune.calibrate.judging import Judged
from onnxprune.errors import BadInputError
from onnxprune.groups.observation import Array

Score = Callable[[dict[str, Array], dict[str, Array]], float]


def metric_of(name: str, calibration: Calibration, portions: Sequence[int]) -> Metric:
    """The damage that `name` asks for, on these portions of the user's samples."""
    if name in NAMED:
        return calibration.judged.by_tensors(NAMED[name])
    score = score_of(name, calibration, portions)

    def damage(reference: Outputs, found: Outputs) -> float:
        best, now = score(reference), score(found)
        if not np.isfinite(best):
            raise BadInputError(f"--metric {name} gives {best} for the original; it must be a finite number.")
        return best - now if np.isfinite(now) else float("inf")

    return damage


def score_of(name: str, calibration: Calibration, portions: Sequence[int]) -> Callable[[Outputs], float]:
    """The user's score on these portions, of what a model gives for `calibration.judged.names`."""
    return scorer(name, calibration.samples, calibration.judged, portions)


def scorer(name: str, samples: Samples, judged: Judged, portions: Sequence[int]) -> Callable[[Outputs], float]:
    """The same, of what a model gives for `judged.names`."""
    function = load_score(name)
    data = _stacked([samples.feeds[k] | (samples.labels[k] if samples.labels else {}) for k in portions])
    return lambda found: _call(function, name, judged.outputs, judged.of_outputs(found), data)


def load_score(name: str) -> Score:
    """The user's function `module:function`; modules are looked for in the current folder as well."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise BadInputError(f"Unknown --metric '{name}'; choose {', '.join(METRICS)} or module:function.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
        _read_again(module, getattr(found, "__module__", module))
        found = getattr(sys.modules[module], function)
    except (ImportError, AttributeError) as error:
        raise BadInputError(f"--metric {name} cannot be imported: {error}.") from None
    if not callable(found):
        raise BadInputError(f"--metric {name} is not a function.")
    return found  # type: ignore[no-any-return]


def sources_of(name: str) -> list[Path]:
    """The files of the module that a user's `module:function` names, and of the one that the function is defined in.

    Raises `BadInputError` where it cannot be imported.
    """
    module = name.partition(":")[0]
    modules = (module, getattr(load_score(name), "__module__", module))
    found = (getattr(sys.modules.get(m), "__file__", None) for m in modules)
    return [Path(f) for f in dict.fromkeys(found) if f]


SEEN: dict[str, int] = {}
"""By module of a metric, when its file had last changed as it was imported; in nanoseconds."""


def _read_again(module: str, origin: str) -> None:
    """What was edited since it was imported, for programs that run on. origin: the module that the function is defined in."""
    edited = [m for m in dict.fromkeys((origin, module)) if _is_edited(m)]
    for m in dict.fromkeys((*edited, module)) if edited else ():
        importlib.reload(sys.modules[m])


def _is_edited(module: str) -> bool:
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    if module == "__main__" or not file.is_file():
        return False
    now = file.stat().st_mtime_ns
    before, SEEN[module] = SEEN.get(module, now), now
    return before != now


def _stacked(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Arrays of several portions, one behind the other; those without a batch axis once."""
    return {n: np.concatenate([p[n] for p in parts]) if parts[0][n].ndim else parts[0][n] for n in parts[0]}


def _call(score: Score, name: str, outputs: Sequence[str], found: Outputs, data: dict[str, Array]) -> float:
    answers = _stacked([dict(zip(outputs, (np.asarray(x) for x in f), strict=True)) for f in found])
    try:
        value: Any = score(answers, data)
        return float(value)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise BadInputError(f"--metric {name} failed: {type(error).__name__}: {error}.") from None
