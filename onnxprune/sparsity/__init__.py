"""Weights set to zero: which, by which criterion, and how they are stored."""

SCOPES = ("layer", "global")  # of a share: each layer's, or all together
CRITERIA = ("magnitude", "wanda", "obs")  # which weights matter
STORES = ("dense", "sparse", "auto")  # how zeros are stored
