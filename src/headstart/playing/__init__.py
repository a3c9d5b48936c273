"""A page to play with: a few drawings teach a trained start new symbols, and it recognises the next while the pen moves."""

from headstart.playing.alone import page_file
from headstart.playing.app import page_app

__all__ = ["page_app", "page_file"]
