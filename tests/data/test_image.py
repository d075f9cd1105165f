from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.data.image import (
    BrokenFile,
    fit,
    read_image,
    read_text,
    recolour,
    to_pixels,
    to_signal,
    write_image,
)
from smalti.data.raster import fit_raster, quiet, read_header, read_raster
from smalti.errors import UserError


def planes(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colour * (alpha[..., None] / 255.0) + 255.0 * (1 - alpha[..., None] / 255.0)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_plain_pictures_come_back_as_they_were_written(tmp_path, paint, mode):
    pixels = paint(tmp_path / "a.png", 0, (5, 7), mode)
    read = read_image(tmp_path / "a.png")
    assert read.dtype == torch.uint8
    assert np.array_equal(read.numpy(), planes(pixels))


@pytest.mark.parametrize(("mode", "channels"), [("LA", 1), ("RGBA", 3)])
def test_alpha_is_laid_on_white(tmp_path, paint, mode, channels):
    pixels = paint(tmp_path / "a.png", 1, (6, 9), mode).astype(float)
    expected = planes(on_white(pixels[..., :-1], pixels[..., -1]))
    assert np.abs(read_image(tmp_path / "a.png").numpy() - expected).max() <= 1
    assert read_image(tmp_path / "a.png", channels=channels).shape[0] == channels


def test_a_transparent_pixel_is_white_whatever_colour_hides_under_it(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").unique().tolist() == [255]
    assert read_image(tmp_path / "a.png", 1).unique().tolist() == [255]


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4)])
def test_alpha_is_kept_where_asked_for(tmp_path, paint, mode, channels):
    pixels = paint(tmp_path / "a.png", 2, (6, 9), mode)
    assert np.array_equal(read_image(tmp_path / "a.png", channels).numpy(), planes(pixels))


def test_a_palette_with_transparency_is_colour_on_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=1)
    assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]
    assert read_image(tmp_path / "a.png", 4)[3, 0].tolist() == [255, 0]
    assert read_image(tmp_path / "a.png", 2)[1, 0].tolist() == [255, 0]


def test_one_bit_is_black_and_white(tmp_path):
    Image.fromarray(np.eye(5, dtype=bool)).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png")[0], 255 * torch.eye(5, dtype=torch.uint8))


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_become_eight(tmp_path, kind):
    eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(eight * 257).save(tmp_path / f"a.{kind}")
    assert np.array_equal(read_image(tmp_path / f"a.{kind}")[0].numpy(), eight)
    assert read_image(tmp_path / f"a.{kind}", 3).shape == (3, 16, 16)
    with quiet():
        assert read_header(tmp_path / f"a.{kind}").grey


def test_floating_point_takes_the_range_that_holds_it(tmp_path):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for scale, offset in [(1, 0), (255, 0), (5000, -100)]:
        Image.fromarray(ramp * scale + offset).save(tmp_path / "a.tif")
        assert np.array_equal(read_image(tmp_path / "a.tif")[0].numpy().ravel(), np.arange(256))
    Image.fromarray(ramp * np.nan).save(tmp_path / "a.tif")
    with pytest.raises(BrokenFile, match="not finite"):
        read_image(tmp_path / "a.tif")


def test_printers_colours_become_rgb(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red = read_image(tmp_path / "a.jpg")[:, 0, 0].tolist()
    assert red[0] > 200
    assert max(red[1:]) < 60
    assert read_image(tmp_path / "a.jpg", 1).shape == (1, 4, 4)


TURNS = {  # EXIF orientation -> how the stored rows and columns must be laid to be seen upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[:, ::-1],
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[::-1],
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_turns_are_obeyed(tmp_path, orientation):
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = TURNS[orientation](stored)
    assert np.array_equal(read_image(tmp_path / "a.png")[0].numpy(), upright)
    with quiet():
        header = read_header(tmp_path / "a.png")
    assert (header.height, header.width) == upright.shape


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animation_gives_its_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert read_image(tmp_path / f"a.{kind}")[:, 4, 4].tolist() == [255, 0, 0]


def test_a_jpeg_may_be_decoded_smaller_but_stays_large_enough(tmp_path):
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (480, 1))] * 3, 2)).save(tmp_path / "a.jpg", quality=95)
    full, small = read_raster(tmp_path / "a.jpg"), read_raster(tmp_path / "a.jpg", at_least=(32, 32))
    assert full.shape == (3, 480, 640)
    assert 64 <= small.shape[1] < 480
    gap = fit_raster(full, (32, 32)).astype(int) - fit_raster(small, (32, 32))
    assert np.abs(gap).max() <= 4


def test_a_header_that_promises_too_much_costs_no_memory(tmp_path, huge_header):
    huge_header(tmp_path / "a.png", 60_000)
    tracemalloc.start()
    with pytest.raises(BrokenFile, match=r"a\.png"):
        read_image(tmp_path / "a.png")
    huge_header(tmp_path / "a.png", 11_000)  # too large for us, not yet for Pillow
    with pytest.raises(BrokenFile, match="11000×11000 pixels"):
        read_image(tmp_path / "a.png")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "bmp", "tif"])
def test_a_file_cut_short_is_broken(tmp_path, paint, cut_short, kind):
    file = tmp_path / f"a.{kind}"
    paint(file, 0, (64, 64))
    cut_short(file)
    with pytest.raises(BrokenFile) as caught:
        read_image(file)
    assert caught.value.path == str(file)
    assert caught.value.reason
    assert "\n" not in str(caught.value)


@given(
    content=st.binary(max_size=200),
    magic=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"BM"]),
)
def test_no_bytes_raise_anything_but_broken_file(tmp_path_factory, content, magic):
    file = tmp_path_factory.getbasetemp() / "noise.png"
    file.write_bytes(magic + content)
    with contextlib.suppress(BrokenFile):
        assert read_image(file).dtype == torch.uint8


def test_missing_files_folders_and_texts_are_broken(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for name, reason in [("gone.png", "no such file"), ("text.png", "not a picture"), (".", "directory")]:
        with pytest.raises(BrokenFile, match=reason):
            read_image(tmp_path / name)


def test_channels_outside_one_to_four_are_the_callers_mistake(tmp_path, paint):
    paint(tmp_path / "a.png", 0)
    with pytest.raises(UserError, match="1 to 4"):
        read_image(tmp_path / "a.png", 5)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.integers(1, 4),
    how=st.sampled_from(["crop", "pad", "stretch"]),
)
def test_fit_gives_the_shape_and_keeps_a_plain_white(size, shape, channels, how):
    white = torch.full((channels, *size), 255, dtype=torch.uint8)
    fitted = fit(white, shape, how)
    assert fitted.shape == (channels, *shape)
    assert fitted.dtype == torch.uint8
    assert (fitted == 255).all()
    if size == shape:
        assert fitted is white


def test_crop_takes_the_middle_and_pad_keeps_everything():
    thirds = torch.zeros(1, 10, 30, dtype=torch.uint8)
    thirds[:, :, 10:20] = 100  # left black, middle grey, right black
    assert (fit(thirds, (10, 10), "crop") == 100).all()
    padded = fit(thirds, (30, 30), "pad")
    assert torch.equal(padded[:, 10:20], thirds)
    assert (padded[:, :10] == 255).all()
    assert (padded[:, 20:] == 255).all()
    assert torch.equal(fit(thirds.mT.contiguous(), (30, 30), "pad"), padded.mT)


def test_fit_is_antialiased():
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    small = fit(board[None].to(torch.uint8), (8, 8), "stretch")
    assert (small.int() - 128).abs().max() <= 8


def test_stretch_is_pillows_resize(paint, tmp_path):
    pixels = paint(tmp_path / "a.png", 3, (20, 30))
    expected = Image.fromarray(pixels).resize((11, 17), Image.Resampling.BICUBIC)
    fitted = fit(torch.from_numpy(planes(pixels).copy()), (17, 11), "stretch")
    assert np.array_equal(fitted.numpy(), planes(np.array(expected)))


def test_an_unknown_way_to_fit_is_refused():
    with pytest.raises(UserError, match="crop, pad, stretch"):
        fit(torch.zeros(1, 4, 4, dtype=torch.uint8), (2, 2), "squeeze")


def test_recolour(tmp_path, paint):
    rgb = torch.from_numpy(planes(paint(tmp_path / "a.png", 4)).copy())
    grey = recolour(rgb, 1)
    expected = (rgb.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    assert (grey - expected).abs().max() <= 1
    assert torch.equal(recolour(grey, 3), grey.expand(3, -1, -1))
    assert torch.equal(recolour(rgb, 4)[:3], rgb)
    assert (recolour(rgb, 4)[3] == 255).all()


def test_pixels_and_signals_are_each_others_inverse():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = to_signal(pixels)
    assert x.dtype == torch.float32
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.allclose(x, pixels.double().div(127.5).sub(1).float(), atol=1e-7)
    assert torch.equal(to_pixels(x), pixels)
    assert to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    assert pixels[1] == 1  # untouched


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_written_is_read_back(tmp_path, channels):
    pixels = torch.randint(0, 256, (channels, 5, 6), generator=torch.manual_seed(0), dtype=torch.uint8)
    fields = {"recipe": "fashion", "label": "T-shirt/top · Ä 漢"}
    write_image(tmp_path / "a.png", to_signal(pixels), fields)
    assert torch.equal(read_image(tmp_path / "a.png", channels), pixels)
    assert read_text(tmp_path / "a.png") == fields
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_failing_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", torch.zeros(1, 4, 4))
    before = (tmp_path / "a.png").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_image(tmp_path / "a.png", torch.ones(1, 4, 4))
    assert (tmp_path / "a.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_only_png_is_written(tmp_path):
    with pytest.raises(UserError, match=r"\.png"):
        write_image(Path(tmp_path) / "a.jpg", torch.zeros(1, 4, 4))


def test_text_of_a_file_without_any(tmp_path, paint):
    paint(tmp_path / "a.png", 0)
    assert read_text(tmp_path / "a.png") == {}
    with pytest.raises(BrokenFile):
        read_text(tmp_path / "b.png")
