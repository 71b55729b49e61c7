"""Carry out a removal: the plan, the rewriting of the graph, bypasses of layers, smaller pictures, tidying up."""
