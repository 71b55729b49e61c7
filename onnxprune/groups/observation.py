"""What running the model showed: concrete shapes and the values of shape-carrying tensors, for two different feeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.groups.maps import Shape

Array = NDArray[Any]
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Observation:
    """`shapes[key]` and `values[key]` come from the first feed, `other_shapes`/`other_values` from the second.

    The two feeds differ in every dynamic dimension of the inputs, so what is equal in both is static.
    """

    shapes: dict[str, Shape]
    other_shapes: dict[str, Shape]
    values: dict[str, Array] = field(default_factory=dict)
    other_values: dict[str, Array] = field(default_factory=dict)
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)
    feeds: tuple[Feeds, Feeds] = field(default=({}, {}), repr=False)

    def is_dynamic(self, key: str, axis: int) -> bool:
        """True when the size of `axis` followed the feeds."""
        a, b = self.shapes.get(key), self.other_shapes.get(key)
        return a is not None and b is not None and (len(a) != len(b) or a[axis] != b[axis])

    def sizes(self, key: str, axis: int) -> tuple[int, int]:
        """The size of an axis in both feeds, 1 where there is none."""
        a, b = self.shapes.get(key, ()), self.other_shapes.get(key, ())
        return a[axis] if axis < len(a) else 1, b[axis] if len(a) == len(b) else 1

    def entries(self, key: str) -> list[int | None]:
        """The numbers of a tensor, None where the feeds gave different ones; [] where it was not observed."""
        a, b = self.values.get(key), self.other_values.get(key)
        if a is None or b is None or a.shape != b.shape:
            return []
        return [int(x) if x == y else None for x, y in zip(a.ravel(), b.ravel(), strict=True)]

    def is_static_value(self, key: str) -> bool:
        """True when both feeds gave this tensor the same value."""
        a, b = self.values.get(key), self.other_values.get(key)
        return a is not None and b is not None and a.shape == b.shape and bool(np.array_equal(a, b))


def batch_of(feeds: Feeds) -> int:
    """Samples in a feed: the longest first axis of its arrays."""
    return max((v.shape[0] for v in feeds.values() if v.ndim), default=1) or 1
