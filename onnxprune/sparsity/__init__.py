"""Weights set to zero: which, by which criterion, and how they are stored."""
