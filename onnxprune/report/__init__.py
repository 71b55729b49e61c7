"""What was found, done and measured, as typed values, and their formats for people and machines."""

from onnxprune.report.renderer import Renderer, register, renderer_for
from onnxprune.report.schemas import schema

__all__ = ["Renderer", "register", "renderer_for", "schema"]
