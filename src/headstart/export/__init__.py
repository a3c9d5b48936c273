"""ONNX graphs: a model adapted to one task, and a learner with its adaptation in the graph."""

from headstart.export.learners import export_learner_onnx
from headstart.export.tasks import export_onnx

__all__ = ["export_learner_onnx", "export_onnx"]
