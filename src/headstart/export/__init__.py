"""ONNX graphs: a model adapted to one task, and a learner with its adaptation in the graph, or beside its body."""

from headstart.export.learners import LearnerParts, export_learner_onnx, export_learner_parts
from headstart.export.tasks import export_onnx

__all__ = ["LearnerParts", "export_learner_onnx", "export_learner_parts", "export_onnx"]
