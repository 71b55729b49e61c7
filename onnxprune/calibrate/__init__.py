"""What the original computes on calibration inputs, and how far another model is from it."""
