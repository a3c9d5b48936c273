"""``headstart serve``."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from headstart.errors import ConfigError
from headstart.training.holding import held
from headstart.using import TrainedStart


@dataclass(frozen=True)
class Serve:
    """Serve a start by HTTP: clients send a few examples, and get a model of their own task.

    Example: headstart serve runs/photos --state tasks
    """

    start: Annotated[Path, tyro.conf.Positional]
    """a run folder; the file of a start; or "characters", which comes with the package"""
    host: str = "127.0.0.1"
    """address to listen at; any but this machine's own is without TLS, so put a proxy before it"""
    port: int = 8000
    """port to listen at"""
    state: Path | None = None
    """folder that tasks are kept in, so that they are there after a restart"""
    max_tasks: int = 1000
    """tasks that are held; beyond it the least recently used go"""
    max_body: int = 8388608
    """bytes of a request"""
    max_images: int = 500
    """examples in a request, pictures or others, and in a task"""
    timeout: float = 30.0
    """seconds for a request"""
    workers_threads: int = 4
    """requests that are computed at a time"""
    trust: tuple[str, ...] = ()
    """module:name of networks of your own that the start may import"""

    def __call__(self) -> int:
        """Loads the start and listens until it is interrupted."""
        try:
            import uvicorn

            from headstart.serving import Limits, app_of
        except ImportError as error:
            raise ConfigError(f"headstart serve needs its extra ({error}): pip install 'headstart[serve]'") from error
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port={self.port}: give one from 0 to 65535")
        import torch

        limits = Limits(
            max_tasks=self.max_tasks,
            max_body=self.max_body,
            max_images=self.max_images,
            timeout=self.timeout,
            threads=self.workers_threads,
        )
        listening = _bound(self.host, self.port)  # before anything is made, and anyone is told
        start = TrainedStart.load(self.start, self.trust)
        # The folder is for the eyes of its owner, and for one server.
        holding = nullcontext() if self.state is None else held(self.state, mode=0o700, option="--state")
        with holding:
            app = app_of(start, limits, self.state)
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // limits.threads))  # else each of them would take all cores
            if not _own(self.host):
                print(f"headstart: warning: {self.host} can be reached from elsewhere, and there is no TLS: who listens can read tokens and"
                      " examples, and anyone may make tasks; put a proxy with TLS before it", file=sys.stderr)  # fmt: skip
            print(f"serving {self.start} at http://{self.host}:{listening.getsockname()[1]} (routes: /docs); Ctrl-C ends it", flush=True)
            # More connections than requests at work and waiting would only hold memory.
            connections = 4 * (limits.threads + limits.waiting)
            settings = uvicorn.Config(app, log_config=None, access_log=False, limit_concurrency=connections, server_header=False,
                                      log_level="warning", timeout_graceful_shutdown=5)  # fmt: skip
            uvicorn.Server(settings).run(sockets=[listening])
            return 0


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}:{port} ({error.strerror or error}); give another --port, or 0 for a free one"
        ) from error


def _own(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
