"""Settings for all tests."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec

from hypothesis import HealthCheck, settings

# A rule that crashes fails the test; for users it is a warning, and the node's units stay.
os.environ["ONNXPRUNE_STRICT"] = "1"

# Times of small graphs are kept apart from the user's.
os.environ.setdefault("ONNXPRUNE_CACHE", tempfile.mkdtemp(prefix="onnxprune-cache-"))

# A model takes as long as it takes; in CI, the examples are the same every time.
settings.register_profile(
    "onnxprune", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("onnxprune")

collect_ignore = (
    [] if find_spec("torch") else ["test_finetune.py", "test_tune.py"]
)  # PyTorch is an extra; all other files do without
