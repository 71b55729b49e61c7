"""Gradients on an ONNX graph: every node evaluated by a PyTorch function, its float constants as parameters.

The only package that needs PyTorch, an extra of its own; whoever imports it without PyTorch is told which.
"""

from onnxprune.errors import BadInputError

try:
    import torch as torch
except ImportError:
    raise BadInputError(
        "Fine-tuning needs PyTorch, which is not installed; install it with: pip install 'onnxprune[finetune]'."
    ) from None
