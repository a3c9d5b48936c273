"""The data source ``folder:PATH``: a person's own pictures, one folder per class.

Two layouts are understood. ``PATH/CLASS/…``: whole classes are put into training, validation and test by 64/16/20 %.
``PATH/train/CLASS/…``, ``PATH/val/CLASS/…`` (or ``valid``, ``validation``) and ``PATH/test/CLASS/…``: as they are, without a class
in two of them; where there is no validation, some of the training classes are taken. Pictures may lie in folders within a class
folder; hidden files are skipped. Of animations and pages the first picture counts.

Whatever is left out, and every doubt, is a warning of the logger ``headstart`` that names the files.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headstart.data.files.cache import Arrays, cache_folder, cached, fingerprint
from headstart.data.files.mapped import scratch, stretches
from headstart.data.source import Source
from headstart.data.sources.splitting import SPELLINGS, Labelled, assemble, some, warn
from headstart.errors import ConfigError, DataError

log = logging.getLogger("headstart")
Pixels: TypeAlias = NDArray[np.uint8]
Fit = Literal["crop", "pad", "stretch"]
RECIPE = 1  # part of the cache's name: raise it with any change to what decoding gives
TINY = 8  # pixels: a smaller picture is an icon or a mistake
SUFFIXES = frozenset(
    ".avif .bmp .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()  # noqa: SIM905
)
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")  # not EPS, which would be run as a program
REMEDIES = {
    "too small": f"use pictures of at least {TINY}×{TINY} pixels",
    "too large": "scale them down",
    "unreadable": "replace or delete them",
}
LAYOUTS = "put the pictures in PATH/CLASS/, or in PATH/train/CLASS/, PATH/val/CLASS/ (optional) and PATH/test/CLASS/"


def load(path: Path, *, size: int = 84, seed: int = 0, channels: int | None = None, fit: Fit = "crop") -> Source:
    """Pictures from folders, decoded on first use and read from the cache afterwards.

    Args:
        path: the folder.
        size: pixels of either side.
        seed: of the choice of classes for each split.
        channels: 3 for colour, 1 for grey; None for grey if all pictures are, else colour.

        fit: how oblong pictures become square: "crop" takes the middle, "pad" keeps all and fills up with the colour of the corners,
            "stretch" changes the proportions.

    Raises:
        DataError: there are no class folders, too few of them or two of one name, or a file may not be read.
        ConfigError: ``size``, ``seed`` or ``channels`` is out of its range.

    Example:
        >>> print(load(Path("birds")))  # doctest: +SKIP
        folder:birds: 128 train classes (7603 examples), 32 validation classes (1895 examples), 40 test classes (2358 examples)
    """
    if size < 1:
        raise ConfigError(f"size={size}: it must be at least 1 pixel")
    if fit not in FITS:
        raise ConfigError(f"fit={fit!r}: use one of {', '.join(FITS)}")
    if channels not in (None, 1, 3):
        raise ConfigError(f"channels={channels}: use 3 for colour, 1 for grey, or None")
    import PIL

    source = f"folder:{path}"
    found = _find(path, source)
    files = [file for _, _, file in found]
    arrays = cached(
        f"folder-{RECIPE}-{size}-{channels or 'auto'}{'' if fit == 'crop' else '-' + fit}-pillow-{PIL.__version__}-{fingerprint(*files)}",
        lambda: _decode_all(files, size, channels, fit),
        note=f"{source}: decoding {len(files)} pictures (once) ...",
    )
    names = [file.relative_to(path).as_posix() for file in files]
    problems = [str(problem) for problem in arrays["problems"]]
    for kind, remedy in REMEDIES.items():
        left_out = [f"{n} ({p.partition(': ')[2]})" for n, p in zip(names, problems, strict=True) if p.startswith(kind)]
        warn(source, f"pictures left out, {kind}", left_out, remedy)
    classes = [None if problem else name for (name, _, _), problem in zip(found, problems, strict=True)]
    data = Labelled(source, arrays["images"], classes, names, [str(digest) for digest in arrays["digests"]])
    given = {name: part for name, part, _ in found if part}
    return assemble(data, given or None, seed)


def decode(content: bytes, size: int = 84, channels: int = 3, fit: Fit = "crop") -> Pixels:
    """One picture: turned upright, what is transparent in it white, and made square.

    Args:
        content: of the file.
        size: pixels of either side.
        channels: 3 for colour, 1 for grey.
        fit: how it is made square, as in :func:`load`.

    Returns:
        (channels, size, size) pixels; grey values of 16 bits scaled to 8.

    Raises:
        DataError: the picture is too small, too large, or of values with no fixed range. A damaged file raises whatever Pillow does.

    Example:
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 30), "red").save(file := io.BytesIO(), "PNG")
        >>> decode(file.getvalue(), size=2).tolist()
        [[[255, 255], [255, 255]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    """
    from PIL import Image, ImageOps

    Image.init()
    with Image.open(io.BytesIO(content), formats=[known for known in FORMATS if known in Image.OPEN]) as image:
        shown = f"{image.width}×{image.height} pixels"
        if min(image.size) < TINY:
            raise DataError(f"too small: {shown}")
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise DataError(f"too large: {shown}")
        # 32-bit grey is 16-bit grey in some versions of Pillow; of other formats no one can tell which value is white.
        deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        if image.mode in ("I", "F") and not deep:
            raise DataError("unreadable: 32-bit values have no fixed range; convert it to 8 or 16 bits")
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction, with enough left to average over
        upright = ImageOps.exif_transpose(image)
    if deep:
        upright = Image.fromarray(((np.asarray(upright).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    flat = upright.convert("RGB" if channels == 3 else "L")
    fitted = FITS[fit](flat, (size, size))
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)


def _crop(image: Any, size: tuple[int, int]) -> Any:
    from PIL import Image, ImageOps

    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def _pad(image: Any, size: tuple[int, int]) -> Any:
    from PIL import Image, ImageOps

    width, height = image.size
    corners = np.array([image.getpixel((x, y)) for x in (0, width - 1) for y in (0, height - 1)]).reshape(4, -1)
    filling = tuple(int(v) for v in np.median(corners, 0))
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC, filling if len(filling) > 1 else filling[0])


def _stretch(image: Any, size: tuple[int, int]) -> Any:
    from PIL import Image

    return image.resize(size, Image.Resampling.BICUBIC)


FITS = {"crop": _crop, "pad": _pad, "stretch": _stretch}


def _decode_all(files: Sequence[Path], size: int, channels: int | None, fit: Fit) -> Arrays:
    """The pixels of every file, or what is wrong with it, and a digest of the pixels."""
    from PIL import Image, UnidentifiedImageError

    images = scratch((len(files), channels or 3, size, size), cache_folder())
    problems = [""] * len(files)

    def one(i: int) -> bool:
        try:
            content = files[i].read_bytes()
        except OSError as error:  # no fault of the picture, so nothing to remember
            raise DataError(f"{files[i]} cannot be read ({error.strerror}); allow reading it, or remove it") from error
        try:
            images[i] = decode(content, size, channels or 3, fit)
        except DataError as error:
            problems[i] = str(error)
        except Image.DecompressionBombError:
            problems[i] = f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels"
        except UnidentifiedImageError:
            problems[i] = "unreadable: not a picture"
        except Exception as error:  # a damaged picture can raise almost anything
            problems[i] = f"unreadable: {error or type(error).__name__}"
        return bool((images[i] == images[i, :1]).all())

    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode() has its own word for it
        grey = all(list(pool.map(one, range(len(files)))))
    if channels is None and grey:
        images = images[:, :1]
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for part in stretches(images) for image in part])
    return {"images": images, "problems": np.array(problems), "digests": digests}


def _find(path: Path, source: str) -> list[tuple[str, str | None, Path]]:
    """Every picture's class, split (None where that is to be chosen) and file, in an order that depends on the names alone."""
    places = _places(path, source)
    classes = [(folder, part) for part, place in places for folder in _folders(place)]
    _check_names(classes, source)
    other: Counter[str] = Counter()
    found = []
    empty = []
    for folder, part in classes:
        pictures = _pictures(_walk(folder), other)
        found += [(_name(folder), part, file) for file in pictures]
        if not pictures:
            empty.append(folder.relative_to(path).as_posix())
    loose = [file for place in {path, *(place for _, place in places)} for file in _pictures(_files(place), other)]
    if not found:
        seen = f"{len(loose)} pictures, but no class folders with pictures" if loose else "no pictures"
        raise DataError(f"{source}: there are {seen}; {LAYOUTS}")
    warn(source, "class folders without pictures", empty, "add pictures or delete them")
    warn(source, "pictures left out that lie in no class folder", sorted(f.relative_to(path).as_posix() for f in loose), LAYOUTS)
    if other:
        kinds = some(f"{count} {kind}" for kind, count in sorted(other.items()))
        log.warning("%s: files left out that are no pictures (%d): %s; convert to .png what should be one", source, other.total(), kinds)
    return sorted(found, key=lambda item: _normal(item[2].relative_to(path).as_posix()))


def _places(path: Path, source: str) -> list[tuple[str | None, Path]]:
    """The folders that hold class folders, and the split that each stands for."""
    inside = _folders(path)
    splits = [folder for folder in inside if folder.name.lower() in SPELLINGS]
    if not splits or (len(splits) == 1 and len(inside) > 1):  # a single one among others is a class: trains, or tests
        return [(None, path)]
    names = ", ".join(folder.name for folder in splits)
    if len(splits) < len(inside):
        others = some(folder.name for folder in inside if folder not in splits)
        raise DataError(f"{source}: beside {names} there are other folders: {others}; move them elsewhere, or {LAYOUTS}")
    parts = [SPELLINGS[folder.name.lower()] for folder in splits]
    if len(set(parts)) < len(parts):
        raise DataError(f"{source}: of the folders {names} two mean the same; merge them")
    if not {"train", "test"} <= set(parts):
        raise DataError(f"{source}: there is only {names}, but train and test are both needed; {LAYOUTS}")
    return list(zip(parts, splits, strict=True))


def _check_names(classes: Iterable[tuple[Path, str | None]], source: str) -> None:
    seen: dict[str, tuple[Path, str | None]] = {}
    for folder, part in classes:
        before, earlier = seen.setdefault(_name(folder).casefold(), (folder, part))
        if earlier != part:
            raise DataError(
                f"{source}: class {folder.name!r} is in both {earlier} and {part}, but the classes to test on must be new ones;"
                " put all class folders into one, PATH/CLASS/, and whole classes are held out"
            )
        if before != folder:
            raise DataError(f"{source}: the class folders {before.name!r} and {folder.name!r} differ in case only; merge or rename them")


def _folders(path: Path) -> list[Path]:
    return [entry for entry in _entries(path) if entry.is_dir() and not _hidden(entry.name)]


def _files(path: Path) -> list[Path]:
    return [entry for entry in _entries(path) if not entry.is_dir()]


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise DataError(f"{path} cannot be listed ({error.strerror}); {LAYOUTS}") from error


def _walk(folder: Path) -> Iterator[Path]:
    """Every file within a folder, also behind links, once."""

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}); allow reading it, or remove it") from error

    seen = set()
    for root, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(name for name in folders if not _hidden(name))
        yield from () if real in seen else (Path(root, name) for name in sorted(files))
        seen.add(real)


def _pictures(files: Iterable[Path], other: Counter[str]) -> list[Path]:
    """Those that are pictures by their ending; the others are counted."""
    pictures = []
    for file in files:
        kind = file.suffix.lower() or "without an ending"
        if _hidden(file.name):
            continue
        if kind in SUFFIXES and file.is_file():
            pictures.append(file)
        else:
            other[kind if file.is_file() else "broken links"] += 1
    return pictures


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _normal(text: str) -> str:
    """Of the forms that systems give one name, the one that is the same on all."""
    return unicodedata.normalize("NFC", text)


def _name(folder: Path) -> str:
    return _normal(folder.name)
