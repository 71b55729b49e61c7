"""`python -m onnxprune.bench`: the benchmarks of a checkout (`tests/benchmarks/`), which are no part of an installation.

The function `onnxprune.bench`, which times models, is in `onnxprune/api/`.
"""

import runpy
import sys
from importlib.util import find_spec

if __name__ == "__main__":
    if find_spec("tests") is None or find_spec("tests.benchmarks") is None:
        sys.exit(
            "python -m onnxprune.bench runs the benchmarks of a checkout: call it in the folder that holds tests/."
        )
    runpy.run_module("tests.benchmarks", run_name="__main__", alter_sys=True)
