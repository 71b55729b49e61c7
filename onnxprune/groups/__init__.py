"""What hangs together: index maps, units, and the groups of units that can be removed."""
