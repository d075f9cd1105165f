from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from tests.data.drawings import archives, colour_of

from smalti.data.cutouts import lay, melts, read_cutouts, scaled
from smalti.data.raster import BrokenFile
from smalti.data.things import THINGS
from smalti.errors import UserError


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_laying_is_what_pillow_does():
    cutout, picture = random(4, 12, 12), random(3, 20, 30)
    under = Image.fromarray(picture.transpose(1, 2, 0)).convert("RGBA")
    under.alpha_composite(Image.fromarray(cutout.transpose(1, 2, 0)), (17, 5))
    lay(cutout, picture, top=5, left=17)
    expected = np.array(under.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(picture.astype(int) - expected).max() <= 1
    lay(np.zeros_like(cutout), picture, 5, 17)
    assert np.abs(picture.astype(int) - expected).max() <= 1  # what is not there changes nothing


def test_a_drawing_fills_its_square_and_keeps_its_proportions():
    codes = [THINGS["dog"], THINGS["octopus"]]
    found = read_cutouts(archives(), codes, 48)
    assert found.shape == (2, 3, 4, 48, 48)
    for row, thing in enumerate(("dog", "octopus")):
        for artist in range(3):
            drawn = found[row, artist]
            y, x = np.nonzero(drawn[3] > 127)
            assert x.min() <= 1
            assert x.max() >= 46
            assert 37 <= y.max() - y.min() <= 41  # the oval is 48 by 40
            assert abs(y.mean() - 23.5) <= 1
            assert tuple(drawn[:3, 24, 24]) == colour_of(thing, artist)


def test_smaller_ones_have_no_dark_seam():
    whole = np.zeros((1, 4, 40, 40), dtype=np.uint8)
    whole[0, :, 10:30, 10:30] = np.array([255, 90, 90, 255])[:, None, None]
    small = scaled(whole, 15)
    assert small.shape == (1, 4, 15, 15)
    assert (small[0, 0][small[0, 3] > 0] >= 250).all()


def test_what_melts_into_a_ground():
    drawn = np.zeros((3, 4, 10, 10), dtype=np.uint8)
    drawn[:, 3, 2:8] = 255
    drawn[0, 0] = 200  # red
    drawn[1, :3] = 120  # grey
    drawn[2, :3, :, :7] = 250  # white, with a black part
    assert melts(drawn, (214, 40, 40)).tolist() == [True, False, False]
    assert melts(drawn, (150, 150, 150)).tolist() == [False, True, False]
    assert melts(drawn, (255, 255, 255)).tolist() == [False, False, True]


def test_a_drawing_that_is_missing_or_empty_is_named():
    code = THINGS["owl"]
    with pytest.raises(UserError, match=rf"google\.zip has no drawing of {code}"):
        read_cutouts(archives(left_out=f"google/{code}"), [code], 8)
    nothing, packed = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(nothing, "PNG")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{code}.png", nothing.getvalue())
    with pytest.raises(BrokenFile, match=f"emoji/twitter/{code}.*nothing in it"):
        read_cutouts(archives() | {"twitter.zip": packed.getvalue()}, [code], 8)
