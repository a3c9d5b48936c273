"""What the pages share: colours, style, and figures as markup."""

from __future__ import annotations

import io
from typing import Any

BLUE, GREY, GREEN, RED = "#2f6db3", "#8a8f98", "#2e8b57", "#c0392b"
CLEAR = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's colours, which people with any colour vision tell apart."""
DASHES = ("-", "--", ":", "-.")
STYLE = """
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1d232b; }
 h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
 .result { font-size: 2.2rem; font-weight: 600; margin: .4rem 0 0; } .note { color: #5a626d; }
 table { border-collapse: collapse; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
 td.number { font-variant-numeric: tabular-nums; } svg { max-width: 100%; height: auto; } pre { overflow-x: auto; font-size: .8rem; }
"""


def figure(width: float, height: float, **options: Any) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained", **options)


def svg(figure: Any) -> Any:
    """The figure as markup to stand in the page; text stays text."""
    import markupsafe
    from matplotlib import pyplot, rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "headstart"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    pyplot.close(figure)
    text = buffer.getvalue()
    return markupsafe.Markup(text[text.index("<svg") :])


def plain(*axes: Any) -> None:
    """Takes away the lines above and to the right of a plot."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
