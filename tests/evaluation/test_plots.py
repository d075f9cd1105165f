from __future__ import annotations

import numpy as np
import pytest
import torch

from smalti.data.image import to_signal
from smalti.evaluation import plots


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_a_grid_is_there_enlarged(channels: int) -> None:
    pixels = torch.randint(0, 256, (5, channels, 6, 4), dtype=torch.uint8)
    sheet = np.asarray(plots.picture_grid(to_signal(pixels), columns=3, scale=3))
    gap = 4
    assert sheet.shape[:2] == (2 * 18 + gap, 3 * 12 + 2 * gap)
    for n in range(5):
        top, left = n // 3 * (18 + gap), n % 3 * (12 + gap)
        shown = torch.from_numpy(sheet[top : top + 18 : 3, left : left + 12 : 3].copy())
        expected = pixels[n, 0] if channels == 1 else pixels[n].permute(1, 2, 0)
        assert torch.equal(shown, expected)
    assert (sheet[18 + gap :, 2 * (12 + gap) :] == 255).all()  # the place left over is paper


def test_small_pictures_are_enlarged_by_default_and_large_ones_are_not() -> None:
    assert plots.picture_grid(torch.zeros(1, 1, 28, 28), 1).size == (56, 56)
    assert plots.picture_grid(torch.zeros(1, 3, 256, 256), 1).size == (256, 256)


def test_alpha_lies_on_white() -> None:
    clear = torch.zeros(1, 4, 2, 2, dtype=torch.uint8)
    assert (np.asarray(plots.picture_grid(clear, 1, scale=1)) == 255).all()
    clear[:, 3] = 255
    assert (np.asarray(plots.picture_grid(clear, 1, scale=1)) == 0).all()
    assert plots.picture_grid(torch.zeros(1, 2, 2, 2, dtype=torch.uint8), 1, scale=1).mode == "L"


def test_names_and_captions_take_room_and_leave_pictures_as_they_are() -> None:
    x = torch.full((2, 1, 28, 28), -1.0)
    bare, named = plots.strip(x), plots.picture_rows({"a rather long name for a row": x, "b": x[:1]})
    assert named.width > bare.width
    assert named.height > 2 * bare.height
    captioned = plots.strip(x, captions=["0 %", "a caption far too long for its picture"])
    assert captioned.width == bare.width
    assert captioned.height > bare.height
    assert (np.asarray(captioned)[:56, :56] == 0).all()


def test_pairs_stand_above_one_another() -> None:
    x = torch.full((3, 1, 28, 28), -1.0)
    sheet = np.asarray(plots.picture_pairs(x, -x, columns=2).convert("L"))[:, -56:]
    dark = (sheet == 0).all(1)
    assert dark[:56].all()
    assert not dark[56:120].any()
    assert len(sheet) == 4 * 56 + 3 * 4 + 12


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        plots.picture_grid(torch.zeros(0, 1, 4, 4), 3)


def test_pictures_can_stand_edge_to_edge() -> None:
    x = torch.full((4, 1, 5, 5), -1.0)
    sheet = plots.picture_grid(x, 2, scale=1, gap=0)
    assert sheet.size == (10, 10)
    assert (np.asarray(sheet) == 0).all()


def test_a_long_name_takes_several_lines() -> None:
    name = "a cat to the left of a red apple, on blue"
    wide = plots._font().getlength
    whole = plots._fit_lines(name, 120, 4)
    assert " ".join(whole) == name
    assert len(whole) > 1
    assert all(wide(line) <= 120 for line in whole)
    cut = plots._fit_lines(name, 120, 2)
    assert cut[0] == whole[0]
    assert len(cut) == 2
    assert cut[1].endswith("…")
    assert wide(cut[1]) <= 120
    (word,) = plots._fit_lines("w" * 99, 120, 3)
    assert wide(word) <= 120
    sheet = plots.picture_rows({name: torch.zeros(1, 3, 64, 64)})
    ink = torch.from_numpy(np.array(sheet.convert("L")))[:, : sheet.width - 68] < 200
    assert ink.any(1).sum() > 20  # more than one line is high
    assert not ink.any(1)[[0, -1]].any()
