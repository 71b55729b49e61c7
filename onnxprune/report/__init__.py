"""What was found, done and measured, for people and machines."""
