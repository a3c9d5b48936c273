"""The two inner geometries as pictures: inner paths from two starts, over a strongly convex and over a nonconvex loss in two numbers.

``python -m headstart.experiments.geometries --out docs/figures`` writes geometries.svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from headstart.container import make_folder, write_atomically
from headstart.experiments.drawing import BLUE, GREEN, GREY, figure, plain

Loss = Callable[[Tensor], Tensor]
STEPS, ALPHA = 12, 0.25


def strongly_convex(w: Tensor) -> Tensor:
    """``½·0.3‖w‖² + log cosh(2w₁ − w₂ − 1)`` of (…, 2) points: every eigenvalue is at least 0.3."""
    return 0.15 * w.square().sum(-1) + torch.log(torch.cosh(2 * w[..., 0] - w[..., 1] - 1))


def nonconvex(w: Tensor) -> Tensor:
    """``½ (w₁w₂ − 1)²``, two layers of one unit each that should multiply to one: a saddle at 0, and minima on two branches."""
    return 0.5 * (w[..., 0] * w[..., 1] - 1).square()


def path(loss: Loss, start: tuple[float, float]) -> Tensor:
    """(N+1, 2) iterates of gradient descent."""
    w, found = torch.tensor(start, dtype=torch.float64), []
    for _ in range(STEPS + 1):
        found.append(w)
        w = w.detach().requires_grad_()
        w = (w - ALPHA * torch.autograd.grad(loss(w), w)[0]).detach()
    return torch.stack(found)


def draw(file: Path) -> None:
    """Writes the figure."""
    drawing, axes = figure(9, 5.6, nrows=2, ncols=2, height_ratios=(2, 1))
    cases = (
        ("strongly convex: paths approach one another", strongly_convex, ((-1.6, 1.5), (1.3, -1.6)), 1 - ALPHA * 0.3, "(1 − αμ)^m"),
        ("nonconvex: paths part", nonconvex, ((0.35, -0.2), (0.2, -0.35)), None, ""),
    )
    side = torch.linspace(-2, 2, 161, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    for column, (title, loss, starts, factor, label) in enumerate(cases):
        above, below = axes[0][column], axes[1][column]
        values = loss(grid)
        above.contour(
            side, side, values, levels=torch.linspace(0, float(values.max()) ** 0.5, 18).square().tolist(), colors=GREY, linewidths=0.5
        )
        paths = [path(loss, start) for start in starts]
        for own, colour in zip(paths, (BLUE, GREEN), strict=True):
            above.plot(own[:, 0], own[:, 1], color=colour, marker="o", markersize=3)
            above.plot(*own[0], marker="s", color=colour, markersize=7)
        above.set(title=title, xlabel="w₁", ylabel="w₂", aspect="equal")
        apart = (paths[0] - paths[1]).norm(dim=1)
        below.plot(range(STEPS + 1), apart, color=BLUE, marker="o", markersize=3, label="distance of the two paths")
        if factor is not None:
            below.plot(range(STEPS + 1), [float(apart[0]) * factor**m for m in range(STEPS + 1)], color=GREY, linestyle="--", label=label)
        below.set(xlabel="inner step m", yscale="log")
        below.legend(frameon=False, fontsize=8)
        plain(above, below)
    make_folder(file.parent)
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "headstart"}):
        write_atomically(file, lambda p: drawing.savefig(p, format=file.suffix[1:], metadata={"Date": None}))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder for geometries.svg")
    draw(parser.parse_args().out / "geometries.svg")


if __name__ == "__main__":
    main()
