"""Counts and times of requests, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class Metrics:
    """What was asked and answered so far; used on the event loop alone.

    Example:
        >>> own = Metrics()
        >>> own.seen("POST", "/tasks", 200, 0.02)
        >>> own.text({"headstart_tasks": 1}).splitlines()[1]
        'headstart_requests_total{method="POST",route="/tasks",status="200"} 1'
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, int]] = Counter()
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._below: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        """One more answer."""
        key = (method if method in METHODS else "other", route)
        self._counts[*key, status] += 1
        self._seconds[key] += seconds
        self._below[key][next((i for i, most in enumerate(BUCKETS) if seconds <= most), len(BUCKETS))] += 1

    def text(self, gauges: dict[str, float]) -> str:
        """All of it, and what is measured now by name."""
        lines = ["# TYPE headstart_requests_total counter"]
        for (method, route, status), count in sorted(self._counts.items()):
            lines.append(f'headstart_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}')
        lines.append("# TYPE headstart_request_seconds histogram")
        for (method, route), below in sorted(self._below.items()):
            own, so_far = f'method="{method}",route="{route}"', 0
            for most, count in zip((*map(str, BUCKETS), "+Inf"), below, strict=True):
                so_far += count
                lines.append(f'headstart_request_seconds_bucket{{{own},le="{most}"}} {so_far}')
            lines.append(f"headstart_request_seconds_sum{{{own}}} {self._seconds[method, route]:.6f}")
            lines.append(f"headstart_request_seconds_count{{{own}}} {so_far}")
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value:g}"]
        return "\n".join(lines) + "\n"


class Measured:
    """An ASGI application whose answers are counted.

    Args:
        app: the application.
        metrics: where they are counted.
    """

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes everything on, and looks at the status."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def watching(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watching)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # never the path itself, of which there is no end
            self.metrics.seen(scope["method"], route, status, time.perf_counter() - begun)
