"""From a model and its inputs to what can be removed from it."""
