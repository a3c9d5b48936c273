"""A server that many clients use at once: each sends a few examples, and gets a model of its own task."""

from headstart.serving.app import app_of
from headstart.serving.limits import Limits

__all__ = ["Limits", "app_of"]
