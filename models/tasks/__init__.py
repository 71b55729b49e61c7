"""What each real model is for: its inputs and the measure of its quality, one file per domain."""
