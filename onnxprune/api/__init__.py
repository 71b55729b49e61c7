"""What users call: each function is a page that reads like its own recipe."""
