"""Benchmarks: `python -m onnxprune.bench zoo DIR`, `… speed`, `… linear`. Ratios measured in one run."""
