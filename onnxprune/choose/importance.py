"""Which units matter? An importance gives every class a score; those with the smallest go first.

A class is what goes or stays together: a channel of a convolution with all weights that make and read it (`groups/classes.py`). One's
own importance is an object with three things, here weights far from their median:

    class Far:
        name = "far"
        needs_calibration = False

        def __call__(self, analysis, calibration, seed):
            def spread(magnitudes, axes):
                return np.abs(magnitudes - np.median(magnitudes)).sum(axis=axes, keepdims=True, dtype=np.float64)

            return per_class(analysis, spread)  # from onnxprune.choose.norms

    onnxprune.prune("model.onnx", Budget("macs", 0.5), importance=Far(), output="small.onnx")

Where it needs calibration it gets one: samples, the original's outputs for them, and moments of every layer's inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from onnxprune.errors import BadInputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from onnxprune.calibrate.calibration import Calibration
    from onnxprune.choose.order import Order
    from onnxprune.groups.analysis import Analysis

    Floats = NDArray[np.float64]


class Importance(Protocol):
    """Scores of classes. name: plans store it. needs_calibration: does the call need the samples and what layers do with them?"""

    @property
    def name(self) -> str: ...

    @property
    def needs_calibration(self) -> bool: ...

    def __call__(self, analysis: Analysis, calibration: Calibration | None, seed: int) -> Floats:
        """One finite number per class, larger is more important, [analysis.solution.count]. seed: of everything random.

        calibration: None where nothing was calibrated; never where `needs_calibration`.
        """
        ...


@runtime_checkable
class Ordering(Protocol):
    """An importance that also says in which order units go, and how wrong that makes their consumers (`choose/order.py`)."""

    def orders(
        self, analysis: Analysis, calibration: Calibration, scores: Floats, progress: Callable[[float], None]
    ) -> dict[str, Order]:
        """By id of the group; without it, units go by their scores."""
        ...


@dataclass(frozen=True)
class Norm:
    """By the norm of the weights that a class has: `l1`, `l2`, `linf` (`choose/norms.py`)."""

    name: str
    needs_calibration: bool = False

    def __call__(self, analysis: Analysis, calibration: Calibration | None, seed: int) -> Floats:
        from onnxprune.choose import norms

        return norms.per_class(analysis, getattr(norms, self.name))


@dataclass(frozen=True)
class Random:
    """By chance."""

    name: str = "random"
    needs_calibration: bool = False

    def __call__(self, analysis: Analysis, calibration: Calibration | None, seed: int) -> Floats:
        import numpy as np

        scores, free = np.zeros(analysis.solution.count), analysis.solution.removable
        scores[free] = np.random.default_rng(seed).random(free.size)
        return scores


@dataclass(frozen=True)
class Surgeon:
    """By what layers that read the units lose after the best repair (`choose/surgeon.py`); by `l2` where no layer reads them."""

    name: str = "obs"
    needs_calibration: bool = True

    def __call__(self, analysis: Analysis, calibration: Calibration | None, seed: int) -> Floats:
        return IMPORTANCES["l2"](analysis, calibration, seed)

    def orders(
        self, analysis: Analysis, calibration: Calibration, scores: Floats, progress: Callable[[float], None]
    ) -> dict[str, Order]:
        from onnxprune.choose.surgeon import operate

        return operate(analysis, calibration, scores, calibration.made_up, progress)


@dataclass(frozen=True)
class Own:
    """A function of the user's, with what it does not say of itself."""

    function: Callable[..., Any]

    @property
    def name(self) -> str:
        return str(
            getattr(self.function, "name", None) or getattr(self.function, "__name__", type(self.function).__name__)
        )

    @property
    def needs_calibration(self) -> bool:
        return bool(getattr(self.function, "needs_calibration", False))

    def __call__(self, analysis: Analysis, calibration: Calibration | None, seed: int) -> Floats:
        found: Floats = self.function(analysis, calibration, seed)
        return found


IMPORTANCES: dict[str, Importance] = {
    each.name: each for each in (Surgeon(), Norm("l1"), Norm("l2"), Norm("linf"), Random())
}


def checked(flag: str, value: Any) -> str | Importance:
    """One of the table's names, or an importance of the user's. Raises `BadInputError`."""
    if isinstance(value, str) and value in IMPORTANCES:
        return value
    if isinstance(value, str) or not callable(value) or isinstance(value, type):
        *names, last = IMPORTANCES
        what = repr(value) if isinstance(value, str) else f"of type {type(value).__name__}"
        raise BadInputError(
            f"Unknown {flag} {what}; choose {', '.join(names)} or {last}, or give an object like those of onnxprune.Importance."
        )
    return (
        value if isinstance(getattr(value, "name", None), str) and hasattr(value, "needs_calibration") else Own(value)
    )


def importance_of(chosen: str | Importance | None) -> Importance:
    """The importance of this name, or the user's own."""
    return IMPORTANCES[chosen or "l2"] if chosen is None or isinstance(chosen, str) else chosen


def scores_of(importance: Importance, analysis: Analysis, calibration: Calibration | None, seed: int) -> Floats:
    """What it says of every class, [classes]. Raises `BadInputError` where that is no score per class."""
    import numpy as np

    try:
        found = np.asarray(importance(analysis, calibration, seed), np.float64)
    except (TypeError, ValueError) as problem:
        if importance.name in IMPORTANCES:
            raise
        raise BadInputError(f"--importance {importance.name} failed: {type(problem).__name__}: {problem}.") from None
    count = analysis.solution.count
    if found.shape != (count,) or not np.isfinite(found).all():
        got = f"shape {list(found.shape)}" if found.shape != (count,) else "NaN or infinity"
        raise BadInputError(
            f"--importance {importance.name} must give {count} finite numbers, one per class, not {got}."
        )
    return found
