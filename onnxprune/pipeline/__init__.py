"""A run as a deployment pipeline needs it: one file that says it all, gates, and what is told to machines and people."""
