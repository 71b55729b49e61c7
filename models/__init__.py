"""Trained models to prune, where they come from, and how their quality is measured."""
