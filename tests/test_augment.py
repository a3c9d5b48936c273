from __future__ import annotations

import pytest
import torch

from fakes import split
from headstart.data import Episodes
from headstart.data.augment import BY_NAME, NONE, Augment
from headstart.errors import ConfigError


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_nothing_changes_nothing() -> None:
    x = torch.randn(4, 3, 6, 6)
    assert torch.equal(NONE(x, generator()), x)


def test_a_crop_is_a_shift_with_repeated_borders() -> None:
    x = torch.arange(36.0).view(1, 1, 6, 6).repeat(200, 1, 1, 1)
    shifts = set()
    for image in Augment(crop=2)(x, generator()):
        dy, dx = divmod(int(image[0, 2, 2]), 6)
        rows, columns = ((torch.arange(6) + d - 2).clamp(0, 5) for d in (dy, dx))
        assert torch.equal(image[0], x[0, 0][rows][:, columns])
        shifts.add((dy - 2, dx - 2))
    assert shifts == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}


def test_a_flip_mirrors_half_of_the_images() -> None:
    x = torch.randn(400, 2, 4, 5)
    out = Augment(flip=True)(x, generator())
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert bool((mirrored | (out == x).flatten(1).all(1)).all())
    assert 150 < int(mirrored.sum()) < 250


def test_jitter_keeps_the_picture() -> None:
    """Brightness, contrast and saturation are affine per image; grey stays grey."""
    grey = torch.randn(5, 1, 4, 4).expand(5, 3, 4, 4)
    out = Augment(jitter=0.4)(grey, generator())
    assert torch.allclose(out[:, 0], out[:, 1])
    flat, before = out[:, 0].flatten(1), grey[:, 0].flatten(1)
    slope = (flat - flat.mean(1, keepdim=True)).norm(dim=1) / (before - before.mean(1, keepdim=True)).norm(dim=1)
    assert bool(((slope > 0.6 - 1e-4) & (slope < 1.4 + 1e-4)).all())
    assert len({round(float(s), 4) for s in slope}) == 5


@pytest.mark.parametrize("kind", ["independent", "dense"])
def test_episodes_change_their_images_by_seed_and_index(kind: str) -> None:
    own = split(9, "train")
    plain = Episodes(own, tasks=3, kind=kind)  # type: ignore[arg-type]
    changed = Episodes(own, tasks=3, kind=kind, augment=BY_NAME["crop"])  # type: ignore[arg-type]
    assert torch.equal(plain.batch(4).support_y, changed.batch(4).support_y)
    assert torch.equal(changed.batch(4).examples, changed.batch(4).examples)
    assert not torch.equal(plain.batch(4).examples, changed.batch(4).examples)


def test_bad_settings_are_refused() -> None:
    for options, words in (({"crop": -1}, "crop=-1"), ({"jitter": 1.0}, "jitter=1.0")):
        with pytest.raises(ConfigError, match=words):
            Augment(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="only images"):
        Augment(flip=True)(torch.zeros(3, 4), generator())


def test_affine_maps_move_a_little_and_keep_the_rest() -> None:
    images = torch.zeros(200, 1, 29, 29)
    images[:, :, 14, 14] = 1.0
    images = torch.nn.functional.avg_pool2d(images, 3, 1, 1) * 9
    moved = Augment(affine=1.0)(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    x = torch.arange(29.0) - 14
    mass = moved.sum((1, 2, 3))
    right, down = (moved.sum(d) @ x for d in ((1, 2), (1, 3)))
    for shift in (right / mass, down / mass):
        assert 0.3 < shift.std() < 1.2, "a shift by up to a twentieth of the width"
        assert shift.abs().max() < 3
    assert torch.equal(moved, Augment(affine=1.0)(images, torch.Generator().manual_seed(0)))
    flat = torch.full((3, 2, 8, 8), 0.7)
    torch.testing.assert_close(Augment(affine=1.0)(flat, torch.Generator().manual_seed(0)), flat)
    with pytest.raises(ConfigError, match="affine=4"):
        Augment(affine=4)
