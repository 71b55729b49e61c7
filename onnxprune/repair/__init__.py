"""Fit the weights that are left to what the original computes."""
