"""The embedded data source ``glyphs``: characters drawn in the twelve DejaVu faces that come with matplotlib.

A class is a character, an example is that character in one face, slightly shifted, turned and scaled. Nothing is downloaded:
the images are drawn once and kept in the user's cache folder. Each image and each class's split depend on the code point and
the face alone, through a hash, so every machine gets the same data, up to what versions of the font renderer change.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.files.cache import Arrays, cached
from headstart.data.source import Source, Split
from headstart.errors import DataError

Images: TypeAlias = NDArray[np.uint8]

RECIPE = 1  # part of the cache's name: raise it with any change to the images or the choice of classes
STYLES = {
    "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
}
FACES = tuple(family + style for family, styles in STYLES.items() for style in styles)

SIZE, INK, EM = 28, 22, 26  # pixels: the image's side, the square that ink is kept within, and the font size
FINE = 4  # glyphs are drawn this many times larger, then averaged
SHIFT, TURN, GROW = 1.5, math.radians(5), 0.04  # the most, in pixels, radians and share, that keeps an INK square in the image
SAME = 7.75  # root-mean-square difference, of 255, of two characters that look the same; no two differ by 7.4 to 8.1

# Of the training images, in the 0-1 range; constants, so that every machine normalises alike.
MEAN, STD = 0.127, 0.304


def load(cache: Path | None = None) -> Source:
    """The glyphs, drawn on first use (about ten seconds) and read from the cache afterwards.

    Args:
        cache: folder to keep the images in; None for :func:`headstart.data.cache.cache_folder`.

    Raises:
        DataError: nothing is cached, and matplotlib, Pillow or the fonts are missing.

    Example:
        >>> print(load())  # doctest: +SKIP
        glyphs: 1384 train classes (16608 examples), 358 validation classes (4296 examples), 464 test classes (5568 examples)
    """
    arrays = cached(f"glyphs-{RECIPE}", build, cache, "drawing the glyphs (about ten seconds, once) ...")
    codes, images = arrays["codes"], arrays["images"]
    place = np.array([_split(code) for code in codes])
    pictures = torch.from_numpy(images.reshape(-1, 1, SIZE, SIZE))

    def split(name: str) -> Split:
        chosen = place == name
        rows = (torch.from_numpy(np.flatnonzero(chosen))[:, None] * len(FACES) + torch.arange(len(FACES))).reshape(-1)
        names = [f"U+{code:04X} {unicodedata.name(chr(code), '')}".strip() for code in codes[chosen]]
        return Split(pictures, names, [len(FACES)] * len(names), name, (MEAN,), (STD,), rows)

    return Source("glyphs", split("train"), split("validation"), split("test"))


def build() -> Arrays:
    """``codes``: (C,) the code point of each class, ascending; ``images``: (C, 12, 28, 28) its images; drawn afresh.

    Raises:
        DataError: matplotlib, Pillow or the fonts are missing.
    """
    codes = code_points()
    clean, images = render(codes)
    chosen = distinct(clean)
    return {"codes": np.array(codes, np.int64)[chosen], "images": images[chosen]}


def code_points() -> list[int]:
    """The code points that all twelve faces have a glyph for, ascending.

    Raises:
        DataError: matplotlib, Pillow or the fonts are missing.
    """
    paths = _font_files()
    from matplotlib.ft2font import FT2Font

    # Glyph 0 is the box that stands for a missing character.
    covered = [{code for code, glyph in FT2Font(str(path)).get_charmap().items() if glyph} for path in paths]
    return sorted(set.intersection(*covered))


def render(codes: Sequence[int]) -> tuple[Images, Images]:
    """Draws characters in all faces: white on black, of their natural size and height on the line as far as they fit.

    Args:
        codes: n code points.

    Returns:
        (n, 12, 28, 28) clean images, and the same slightly shifted, turned and scaled; black where there is no ink.

    Raises:
        DataError: matplotlib, Pillow or the fonts are missing.

    Example:
        >>> clean, images = render([ord("A"), ord("B")])
        >>> images.shape
        (2, 12, 28, 28)
    """
    paths = _font_files()
    from PIL import Image, ImageDraw, ImageFont

    clean = np.zeros((len(codes), len(paths), SIZE, SIZE), np.uint8)
    images = np.zeros_like(clean)
    em, side = EM * FINE, SIZE * FINE
    pen, canvas_size = (2 * em, 2 * em), (5 * em, 5 * em)  # room for the widest ink and its frame
    for j, path in enumerate(paths):
        # The basic layout draws what the font has; the other one puts a dotted circle under combining marks.
        font = ImageFont.truetype(str(path), em, layout_engine=ImageFont.Layout.BASIC)
        for i, code in enumerate(codes):
            canvas = Image.new("L", canvas_size)
            ImageDraw.Draw(canvas).text(pen, chr(code), fill=255, font=font, anchor="ls")
            ink = canvas.getbbox()
            if ink is None:
                continue
            x, y, width = _frame(ink, baseline=pen[1])
            box = (x - width / 2, y - width / 2, x + width / 2, y + width / 2)
            clean[i, j] = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX, box))

            right, down, turn, grow = _jitter(code, FACES[j])
            zoom = width / side / (1 + GROW * grow)
            cos, sin = zoom * math.cos(TURN * turn), zoom * math.sin(TURN * turn)
            u, v = side / 2 + FINE * SHIFT * right, side / 2 + FINE * SHIFT * down  # where the frame's centre goes
            affine = (cos, sin, x - cos * u - sin * v, -sin, cos, y + sin * u - cos * v)
            moved = canvas.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
            images[i, j] = np.asarray(moved.reduce(FINE))
    return clean, images


def distinct(clean: Images) -> NDArray[np.int64]:
    """The first of every group of characters that look the same; characters without ink are left out.

    Two look the same when their images in all faces together differ by less than ``SAME``: Latin, Greek and Cyrillic A are
    one glyph in some faces and differ by a fraction of a pixel in others.

    Args:
        clean: (n, faces, height, width) images.

    Example:
        >>> distinct(render([ord(c) for c in "A BAΑА"])[0])  # Latin, blank, Latin, Latin, Greek, Cyrillic
        array([0, 2])
    """
    inked = np.flatnonzero(clean.max((2, 3)).min(1))
    flat = clean[inked].reshape(len(inked), -1).astype(np.float32)
    norms = (flat**2).sum(1)
    near = norms[:, None] + norms - 2 * (flat @ flat.T) < SAME**2 * flat.shape[1]
    first = np.ones(len(inked), bool)
    for i in range(1, len(inked)):
        first[i] = not (near[i, :i] & first[:i]).any()
    return inked[first]


def _font_files() -> list[Path]:
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    paths = [folder / f"{face}.ttf" for face in FACES]
    for path in paths:
        if not path.is_file():
            raise DataError(f"the font {path} is missing; reinstall matplotlib, which comes with it")
    return paths


def _frame(ink: tuple[int, int, int, int], baseline: float) -> tuple[float, float, float]:
    """Centre and width of the square of the canvas that becomes the image: of one size for all characters that fit."""
    left, top, right, bottom = ink
    width = max(SIZE * FINE, max(right - left, bottom - top) * SIZE / INK)
    slack = (width * INK / SIZE - (bottom - top)) / 2
    middle, halfway = (top + bottom) / 2, baseline - 0.3 * EM * FINE  # of the ink; of the letters on the line
    return (left + right) / 2, min(max(halfway, middle - slack), middle + slack), width


def _jitter(code: int, face: str) -> tuple[float, ...]:
    """Four numbers from -1 to 1, always the same for a code point and a face."""
    digest = hashlib.sha256(f"U+{code:04X} {face}".encode()).digest()
    return tuple(int.from_bytes(digest[k : k + 4], "big") / (2**31 - 0.5) - 1 for k in range(0, 16, 4))


def _split(code: int) -> str:
    """Where a class belongs: a matter of its code point alone, so that other classes may come or go."""
    share = int.from_bytes(hashlib.sha256(f"U+{code:04X}".encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.64 else "validation" if share < 0.80 else "test"
