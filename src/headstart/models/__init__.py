"""Networks of our own: plain modules that know nothing of meta-learning."""

from headstart.models.context import Context
from headstart.models.convnets import conv4, resnet12
from headstart.models.heads import Cosine, Latent
from headstart.models.on_body import OnFeatures, on_features
from headstart.models.perceptron import mlp, projection

__all__ = ["Context", "Cosine", "Latent", "OnFeatures", "conv4", "mlp", "on_features", "projection", "resnet12"]
