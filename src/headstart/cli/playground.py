"""``headstart playground``."""

from __future__ import annotations

import socket
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from headstart.errors import ConfigError
from headstart.using import TrainedStart

HOST = "127.0.0.1"
"""Only this machine: the page has no users and no passwords."""


@dataclass(frozen=True)
class Playground:
    """Open a page on which you draw a few symbols once each, and the model recognises the next while the pen is still moving.

    Example: headstart playground --open
    """

    start: Annotated[str, tyro.conf.Positional] = "characters"
    """what learns: "characters", which comes with the package; a run folder; or the file of a start, trained on pictures"""
    port: int = 8001
    """of this machine; 0 takes a free one"""
    open: bool = False
    """open the page in the browser"""
    trust: tuple[str, ...] = ()
    """module:name of networks of your own that the file may import"""
    page: str = ""
    """FILE.html that is written instead: the page, the start and what runs it in one file, which needs no server and no network"""
    runtime: str = ""
    """for --page, the folder of the npm package onnxruntime-web, where that is not in node_modules"""

    def __call__(self) -> int:
        """Serves the page until it is interrupted, or writes it into a file."""
        try:
            import uvicorn

            from headstart.playing import page_app, page_file
        except ImportError as error:
            raise ConfigError(f"the page needs fastapi and uvicorn ({error}): pip install 'headstart[serve]'") from error
        if self.runtime and not self.page:
            raise ConfigError("--runtime is what runs a page without a server; name its file with --page FILE.html")
        start = TrainedStart.load(self.start, self.trust)
        if self.page:
            self._written(page_file(start, self.page, self.runtime or None))
            return 0
        app = page_app(start)
        with self._listening() as own:
            address = f"http://{HOST}:{own.getsockname()[1]}/"
            print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
            if self.open:
                webbrowser.open(address)  # the socket listens already, so that it waits for the server
            try:
                uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[own])
            except KeyboardInterrupt:  # how it is meant to end
                print()
        return 0

    def _written(self, path: Path) -> None:
        print(f"{path}: the page in one file of {path.stat().st_size / 1e6:.1f} MB; open it in a browser, or put it on any web host")
        if self.open:
            webbrowser.open(path.resolve().as_uri())

    def _listening(self) -> socket.socket:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port={self.port}: ports are numbers from 0 to 65535")
        try:
            return socket.create_server((HOST, self.port))
        except OSError as error:
            raise ConfigError(f"port {self.port} cannot be had ({error.strerror or error}); give another with --port") from error
