"""What a server takes at most, and why it says no."""

from __future__ import annotations

from dataclasses import dataclass, fields

from headstart.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server, which hold whatever clients send.

    Args:
        max_tasks: tasks that are held; beyond it the least recently used go, whoever they belong to.
        max_body: bytes of a request.
        max_images: examples in a request, pictures or others, and in the support set of a task.
        max_pixels: of one picture, before it is scaled down; all pictures of a request have four times as many at most.
        timeout: seconds for a request, from its first byte.
        threads: requests that are computed at a time.
        waiting: further requests that may wait for them; all others are told to come back later.

    Raises:
        ConfigError: one of them is not above 0.

    Example:
        >>> Limits(max_tasks=10).max_body
        8388608
    """

    max_tasks: int = 1000
    max_body: int = 8 * 2**20
    max_images: int = 500
    max_pixels: int = 2**24
    timeout: float = 30.0
    threads: int = 4
    waiting: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(f"{field.name}={getattr(self, field.name)}: it must be above 0")


class Refusal(Exception):
    """A request that is not answered; ``status`` and the message go to the client."""

    status = 422


class UnknownTask(Refusal):
    """There is no such task, or the token is not its own: a client cannot tell which."""

    status = 404

    def __init__(self) -> None:
        super().__init__("there is no such task, or the token is not the one that came with it")


class TooLarge(Refusal):
    """The body has more bytes than are taken."""

    status = 413


class WrongType(Refusal):
    """The body is not said to be JSON."""

    status = 415


class Busy(Refusal):
    """As many requests are at work as may be, or something else is short."""

    status = 503


class Late(Refusal):
    """The request took longer than it may."""

    status = 504
