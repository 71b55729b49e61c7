"""Linear algebra on one thread. Sums round in another way on more, so that results would depend on how many cores a machine has; and jobs
that run side by side would get in each other's way, as every one of them would take all cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy's and SciPy's matrix products and solvers run on one thread meanwhile, in this whole process."""
    import scipy.linalg  # noqa: F401  a library that is loaded later would not be told
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
