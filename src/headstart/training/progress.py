"""How far training is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows iterations, rates and time left.

    Args:
        total, done: iterations in all, and those already done.
        tasks: tasks per iteration.
        quiet: show nothing.
    """

    def __init__(self, total: int, done: int, tasks: int, quiet: bool = False) -> None:
        self.total, self.done, self.tasks, self.quiet = total, done, tasks, quiet
        self.first, self.begin, self.next_line = done, time.monotonic(), 0.0
        live = not quiet and sys.stderr.isatty()
        self.bar: Any = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, leave=True) if live else None

    def step(self, loss: float, accuracy: float | None) -> None:
        """One more iteration is done."""
        self.done += 1
        shown = {"loss": f"{loss:.3f}", **({} if accuracy is None else {"acc": f"{100 * accuracy:.1f}%"})}
        if self.bar is not None:
            self.bar.set_postfix({**shown, "tasks/s": f"{self._rate() * self.tasks:.0f}"}, refresh=False)
            self.bar.update()
        elif not self.quiet and (time.monotonic() >= self.next_line or self.done == self.total):
            left = (self.total - self.done) / self._rate()
            numbers = "  ".join(f"{k} {v}" for k, v in shown.items())
            rates = f"{self._rate():.1f} steps/s  {self._rate() * self.tasks:.0f} tasks/s"
            self._print(f"step {self.done}/{self.total}  {numbers}  {rates}  {_clock(left)} left")
            self.next_line = time.monotonic() + 10

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        elif not self.quiet:
            self._print(text)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar is not None:
            self.bar.close()

    def _rate(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.begin, 1e-9)

    @staticmethod
    def _print(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
