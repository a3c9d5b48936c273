"""A person's own pictures: what is decoded, exactly; how classes are split; and that nothing is left out in silence."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from headstart.data import Episodes
from headstart.data.source import Source, Split
from headstart.data.sources import folder
from headstart.data.sources.folder import decode, load
from headstart.errors import ConfigError, DataError

Warnings = Callable[[], str]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def picture(path: Path, seed: int, *, size: int = 16, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, size, size) if grey else noise(seed, size, size, 3)).save(path)


def make(root: Path, classes: str | list[str], each: int = 3, first: int = 0, grey: bool = False) -> None:
    for c, name in enumerate(classes):
        for i in range(each):
            picture(root / name / f"{i}.png", first + 100 * c + i, grey=grey)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Warnings:
    caplog.set_level(logging.INFO, "headstart")
    return lambda: "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)


def splits(source: Source) -> dict[str, Split]:
    return {"train": source.train, "validation": source.validation, "test": source.test}


def test_pixels_of_the_right_size_are_kept() -> None:
    colour, grey = noise(0, 9, 9, 3), noise(1, 9, 9)
    assert np.array_equal(decode(encoded(Image.fromarray(colour)), 9), colour.transpose(2, 0, 1))
    assert np.array_equal(decode(encoded(Image.fromarray(grey)), 9), np.stack([grey] * 3))
    assert np.array_equal(decode(encoded(Image.fromarray(grey)), 9, channels=1), grey[None])
    palette = Image.fromarray(colour).quantize(16)
    assert np.array_equal(decode(encoded(palette), 9), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    bilevel = Image.fromarray(grey > 127)
    assert np.array_equal(decode(encoded(bilevel), 9, channels=1)[0], np.where(grey > 127, 255, 0))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),  # a fifth
        ("RGBA", (0, 10, 20, 255), (0, 10, 20)),
        ("LA", (0, 51), (204, 204, 204)),
    ],
)
def test_transparency_is_white(mode: str, colour: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = decode(encoded(Image.new(mode, (8, 8), colour)), 8)
    assert found.reshape(3, -1).T.tolist() == [list(expected)] * 64


def test_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (0, 0, 8, 4))
    for kind in ("PNG", "GIF"):
        found = decode(encoded(image, kind, transparency=0), 8)
        assert (found[:, 4:] == 255).all()
        assert found[:, 0, 0].tolist() == [40, 50, 60]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    assert np.array_equal(decode(encoded(Image.fromarray(values), kind), 16, 1)[0], np.arange(256).reshape(16, 16))
    assert np.array_equal(decode(encoded(Image.fromarray(np.minimum(values, 65406) + 128), kind), 16, 1)[0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_no_fixed_range_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match="convert it to 8 or 16 bits"):
        decode(encoded(Image.new(mode, (8, 8), 7), "TIFF"), 8)


def test_programs_are_no_pictures() -> None:
    with pytest.raises(UnidentifiedImageError):  # Ghostscript would run it
        decode(encoded(Image.new("RGB", (9, 9)), "EPS"))


@pytest.mark.parametrize(("orientation", "upright"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_rotation_is_applied(orientation: int, upright: int) -> None:
    pixels = noise(2, 8, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), exif=exif.tobytes()), 8, 1)[0], np.rot90(pixels, upright))


def test_exif_rotation_of_a_large_jpeg() -> None:
    image = Image.new("L", (1200, 800), 0)
    image.paste(255, (0, 0, 1200, 400))  # white above; the camera was turned
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encoded(image, "JPEG", exif=exif.tobytes()), 10, 1)[0]
    assert (found[:, :4] < 5).all()
    assert (found[:, 6:] > 250).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_large_pictures_keep_the_middle_square(kind: str) -> None:
    pixels = np.zeros((2000, 3000), np.uint8)
    pixels[:, 500:2500] = 100
    pixels[1000:, 500:2500] = 200
    found = decode(encoded(Image.fromarray(pixels), kind), 84, 1)[0]
    assert (found[:40, 2:-2] == 100).all()
    assert (found[44:, 2:-2] == 200).all()


def test_scaling_down_averages() -> None:
    board = np.indices((336, 336)).sum(0) % 2 * 255
    found = decode(encoded(Image.fromarray(board.astype(np.uint8))), 84, 1)[0]
    assert np.abs(found.astype(int) - 127.5).max() < 3


def test_layout_of_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headstart")
    names = [f"class {i:02d}" for i in range(50)]
    make(tmp_path, names, each=2)
    source = load(tmp_path, size=16)
    assert [len(s.classes) for s in splits(source).values()] == [32, 8, 10]
    assert sorted(c for s in splits(source).values() for c in s.classes) == names
    for split in splits(source).values():
        assert split.examples.shape == (2 * len(split.classes), 3, 16, 16)
        for c, name in enumerate(split.classes):
            for i in range(2):
                expected = noise(100 * names.index(name) + i, 16, 16, 3).transpose(2, 0, 1)
                assert np.array_equal(split.examples[2 * c + i].numpy(), expected)
    values = source.train.examples.double() / 255
    assert source.test.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert source.test.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    (_, summary) = (r.getMessage() for r in caplog.records)
    assert f"folder:{tmp_path}: 100 pictures of 3×16×16 in 50 classes; held out for validation: {source.validation.classes[0]}," in summary
    assert Episodes(source.test, shots=1, queries=1).batch(0).ways == 5


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_layout_of_splits(name: str, tmp_path: Path) -> None:
    for i, (part, classes) in enumerate({"train": "abc", name: "de", "test": "fg"}.items()):
        make(tmp_path / part, list(classes), first=1000 * i)
    assert {k: "".join(s.classes) for k, s in splits(load(tmp_path, size=16)).items()} == {"train": "abc", "validation": "de", "test": "fg"}


def test_validation_comes_from_training_where_there_is_none(tmp_path: Path) -> None:
    make(tmp_path / "train", [f"c{i:02d}" for i in range(30)])
    make(tmp_path / "test", ["x", "y"], first=9000)
    source = load(tmp_path, size=16)
    assert [len(s.classes) for s in splits(source).values()] == [24, 6, 2]
    assert list(source.test.classes) == ["x", "y"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], r"no pictures; put the pictures in PATH/CLASS/, or in PATH/train/CLASS/"),
        (["a", "b", "c", "d", "e"], r"5 usable classes: a, b, c, d, e; for train and validation and test at least 6 are needed"),
        (["Cat", "cat", "dog"], r"'Cat' and 'cat' differ in case only"),
        (["train/a", "train/b", "val/c"], r"only train, val, but train and test are both needed"),
        (["train/a"], r"only train, but train and test"),
        (["train/a", "test/b", "extra/c"], r"other folders: extra; move them"),
        (["train/a", "val/b", "valid/c"], r"of the folders train, val, valid two mean the same; merge"),
        (["train/a", "train/b", "test/a"], r"class 'a' is in both test and train, but the classes to test on must be new ones"),
        (["train/a", "train/b", "train/c", "train/d", "test/e"], r"1 usable classes for test: e; at least 2 are needed"),
        (["train/a", "train/b", "train/c", "test/e", "test/f"], r"3 usable classes: a, b, c; for train and validation at least 4"),
    ],
)
def test_folders_that_cannot_be_split_say_so(folders: list[str], message: str, tmp_path: Path) -> None:
    make(tmp_path, folders)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, size=16)
    assert f"folder:{tmp_path}: " in str(error.value)


def test_wrong_arguments_are_explained(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 0)
    with pytest.raises(DataError, match=r"1 pictures, but no class folders with pictures; put the pictures in PATH/CLASS/"):
        load(tmp_path)
    with pytest.raises(DataError, match="cannot be listed"):
        load(tmp_path / "none")
    with pytest.raises(ConfigError, match="size=0"):
        load(tmp_path, size=0)
    with pytest.raises(ConfigError, match="channels=2"):
        load(tmp_path, channels=2)


def test_grey_only_if_all_are(tmp_path: Path) -> None:
    make(tmp_path, "abcdef", grey=True)
    source = load(tmp_path, size=16)
    assert source.train.examples.shape[1:] == (1, 16, 16)
    assert np.array_equal(source.train.examples[0, 0].numpy(), noise(100 * "abcdef".index(source.train.classes[0]), 16, 16))
    assert load(tmp_path, size=16, channels=3).train.mean == pytest.approx(source.train.mean * 3)
    picture(tmp_path / "a" / "colour.png", 999)
    assert load(tmp_path, size=16).train.examples.shape[1:] == (3, 16, 16)
    assert load(tmp_path, size=16, channels=1).train.examples.shape[1:] == (1, 16, 16)


def test_nothing_is_said_of_sound_folders(tmp_path: Path, warned: Warnings) -> None:
    make(tmp_path, "abcdef")
    (tmp_path / ".hidden").mkdir()
    picture(tmp_path / ".hidden" / "1.png", 5000)
    picture(tmp_path / "a" / ".hidden.png", 5001)
    picture(tmp_path / "a" / "deeper" / "still" / "1.png", 5002)
    (tmp_path / "b" / "again").symlink_to(tmp_path / "b")  # endless, if followed
    source = load(tmp_path, size=16)
    assert sum(len(s) for s in splits(source).values()) == 19
    assert warned() == ""


def test_damaged_files_are_left_out_and_named(tmp_path: Path, warned: Warnings, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "abcdef")
    (tmp_path / "a" / "text.png").write_text("no picture")
    (tmp_path / "b" / "empty.gif").write_bytes(b"")
    (tmp_path / "b" / "float.tif").write_bytes(encoded(Image.new("F", (9, 9)), "TIFF"))
    picture(tmp_path / "c" / "icon.png", 5000, size=4)
    picture(tmp_path / "c" / "vast.png", 5001, size=50)
    picture(tmp_path / "c" / "bomb.png", 5001, size=90)
    for name in ("notes.txt", "more.txt", "phone.heic", "LICENSE"):
        (tmp_path / "d" / name).write_text("")
    (tmp_path / "d" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "none").mkdir()
    picture(tmp_path / "loose.png", 5002)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    make(tmp_path, ["single"], each=1, first=7000)
    source = load(tmp_path, size=16)
    assert sum(len(s) for s in splits(source).values()) == 18
    text = warned()
    assert "too small (1): c/icon.png (4×4 pixels); use pictures of at least 8×8 pixels" in text
    assert "too large (2): c/bomb.png (more than 4000 pixels), c/vast.png (50×50 pixels); scale" in text
    assert (
        "unreadable (3): a/text.png (not a picture), b/empty.gif (not a picture), b/float.tif (32-bit values have no fixed range;" in text
    )
    assert "no pictures (5): 1 .heic, 2 .txt, 1 broken links, 1 without an ending; convert" in text
    assert "class folders without pictures (1): none; add" in text
    assert "lie in no class folder (1): loose.png; put" in text
    assert "fewer than 2 usable pictures (1): single; add" in text
    assert all(line.startswith(f"folder:{tmp_path}: ") for line in text.splitlines())


def test_truncated_jpegs_are_left_out_and_named_again_from_the_cache(
    tmp_path: Path, warned: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "abcdef")
    jpeg = encoded(Image.fromarray(noise(0, 600, 600, 3)), "JPEG")
    (tmp_path / "a" / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    first = load(tmp_path, size=16)
    monkeypatch.setattr(folder, "decode", lambda *_: pytest.fail("decoded again"))
    again = load(tmp_path, size=16)
    assert torch.equal(first.test.examples, again.test.examples)
    assert warned().count("unreadable (1): a/cut.jpg (") == 2


def test_changed_files_are_decoded_again(tmp_path: Path) -> None:
    classes = ["bus", "car", "train", "ship", "bike", "test-car"]  # a class may be called train
    make(tmp_path, classes)
    before = load(tmp_path, size=16)
    make(tmp_path, classes, first=40)
    after = load(tmp_path, size=16)
    assert before.train.classes == after.train.classes
    assert not torch.equal(before.train.examples, after.train.examples)


def test_no_picture_is_in_two_splits(tmp_path: Path, warned: Warnings) -> None:
    for i, (part, classes) in enumerate({"train": "abc", "val": "de", "test": "fgh"}.items()):
        make(tmp_path / part, list(classes), first=1000 * i)
    picture(tmp_path / "test" / "f" / "twin.png", 0)  # of train/a/0.png
    for i in range(2):
        picture(tmp_path / "test" / "h" / f"{i}.png", 100 + i)  # of train/b, and h is left with a single picture
    source = load(tmp_path, size=16)
    assert {k: s.counts for k, s in splits(source).items()} == {"train": [3, 3, 3], "validation": [3, 3], "test": [3, 3]}
    seen = [image.numpy().tobytes() for s in splits(source).values() for image in s.examples]
    assert len(set(seen)) == len(seen) == 21
    text = warned()
    assert "in two classes, perhaps mislabelled (3): train/a/0.png = test/f/twin.png," in text
    assert "two splits (3): test/f/twin.png of test, which is in train too" in text
    assert "classes left out with fewer than 2 usable pictures (1): h;" in text


def test_oblong_pictures_are_cropped_padded_or_stretched() -> None:
    from PIL import Image

    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (200, 100, 0)
    Image.fromarray(wide).save(file := io.BytesIO(), "PNG")
    crop, pad, stretch = (decode(file.getvalue(), 30, 3, fit) for fit in ("crop", "pad", "stretch"))  # type: ignore[arg-type]
    assert crop[0, 15, 15] == 200
    assert (crop[0] > 150).mean() > 0.9, "the middle square is all orange"
    assert (pad[:, :9] == 0).all()
    assert abs((pad[0] > 100).mean() - 1 / 9) < 0.02
    assert abs((stretch[0] > 100).mean() - 1 / 3) < 0.03
    Image.new("L", (40, 20), 255).save(white := io.BytesIO(), "PNG")
    assert (decode(white.getvalue(), 16, 1, "pad") == 255).all(), "the corners' colour fills up"
    with pytest.raises(ConfigError, match="fit='squash'"):
        load(Path("nowhere"), fit="squash")  # type: ignore[arg-type]
