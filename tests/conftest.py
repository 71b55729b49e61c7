"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A model takes as long as it takes; in CI, the examples are the same every time.
settings.register_profile(
    "onnxprune", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("onnxprune")

os.environ.setdefault("ONNXPRUNE_STRICT", "1")  # a rule that fails is an error in tests, not a warning
