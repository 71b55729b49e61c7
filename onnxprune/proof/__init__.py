"""Is the pruned model what it should be? Compared with the masked original."""
