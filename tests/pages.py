"""The documents: their blocks of code, which are run unless they say why not, and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TUTORIALS = {f"docs/{name}" for name in ("quick-start", "extend", "tutorials/own-pictures", "tutorials/own-table", "tutorials/own-texts")}
TUTORIALS_ON_DATA = {
    "docs/tutorials/use-drawings": "omniglot",
    "docs/tutorials/use-intents": "clinc150",
    "docs/tutorials/use-assay": "fsmol",
}
"""Pages whose commands are run with their Python, by test_tutorials; and those that need public data."""
PAGES = [ROOT / "README.md", *sorted(p for p in ROOT.glob("docs/**/*.md") if "_build" not in p.parts)]
BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>.*?) -->\n\s*)?^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        kind: what stands behind the fence: ``python``, or nothing for commands and their output.
        code: its text.
        why: why it is not run, from the comment ``<!-- not run: … -->`` before it; "" where it is.
    """

    kind: str
    code: str
    why: str


def blocks(page: Path) -> list[Block]:
    return [Block(m["kind"], m["code"], m["why"] or "") for m in BLOCK.finditer(page.read_text())]


def python(page: Path) -> list[str]:
    """The Python of a page that is to be run."""
    return [b.code for b in blocks(page) if b.kind == "python" and not b.why]


def commands(page: Path) -> list[str]:
    """What follows ``headstart`` in the lines of blocks that are commands, as they are typed."""
    return [line for b in blocks(page) if b.kind in ("", "sh") for line in re.findall(r"^headstart (.*)$", b.code, re.MULTILINE)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix(""))
