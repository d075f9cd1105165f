from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import cut, stripes

from smalti.data.image import read_image, to_pixels, to_signal
from smalti.errors import UserError
from smalti.model import load_tokenizer
from smalti.sampling import codes


@pytest.fixture
def tokenizer(tiny):
    return load_tokenizer(tiny.tokenizer, "cpu")


@pytest.fixture
def folder(tmp_path):
    """Pictures of sizes that no stride divides, two of one name."""
    for name, size in {"a/x": (13, 17), "b/x": (16, 16), "b/y": (5, 3), "z": (21, 16)}.items():
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stripes(len(name), True, size)).save(path)
    return tmp_path / "in"


def test_there_and_back_at_the_true_size(tokenizer, folder, tmp_path):
    encoded = codes.encode_files(tokenizer, [folder], tmp_path / "codes.safetensors")
    assert [(each.name, each.size, each.codes.shape) for each in encoded] == [
        ("x.png", (13, 17), (1, 4, 5)),
        ("x.png", (16, 16), (1, 4, 4)),
        ("y.png", (5, 3), (1, 2, 1)),
        ("z.png", (21, 16), (1, 6, 4)),
    ]
    again = codes.read_codes(tmp_path / "codes.safetensors", tokenizer)
    for one, other in zip(encoded, again, strict=True):
        assert (one.name, one.size) == (other.name, other.size)
        assert torch.equal(one.codes, other.codes)
        assert other.codes.dtype == torch.int64
    paths = codes.decode_files(tokenizer, tmp_path / "codes.safetensors", tmp_path / "out")
    assert [path.name for path in paths] == ["x.png", "x_1.png", "y.png", "z.png"]
    for path, one in zip(paths, encoded, strict=True):
        assert read_image(path).shape == (1, *one.size)

    whole = to_signal(read_image(folder / "a" / "x.png", 1)).numpy()
    padded = torch.from_numpy(np.pad(whole, ((0, 0), (0, 3), (0, 3)), "edge"))[None]
    assert torch.equal(tokenizer.encode(padded)[0], encoded[0].codes)
    assert torch.equal(to_pixels(tokenizer.decode(tokenizer.encode(padded))[0, :, :13, :17]), read_image(paths[0]))


def test_reconstructions_and_their_error(tokenizer, folder, tmp_path):
    for path, psnr in codes.reconstruct_files(tokenizer, [folder], tmp_path / "out"):
        original = read_image({"x.png": folder / "a/x.png", "x_1.png": folder / "b/x.png"}.get(
            path.name, folder / path.name if path.name == "z.png" else folder / "b" / path.name
        ))  # fmt: skip
        rebuilt = read_image(path)
        assert rebuilt.shape == original.shape
        mse = ((rebuilt.float() - original.float()) / 255).square().mean().item()
        assert psnr == pytest.approx(-10 * math.log10(mse), abs=0.2)  # the file is rounded, the figure is not


def test_a_colour_picture_for_a_grey_model(tokenizer, tmp_path):
    Image.fromarray(np.full((16, 16, 3), (200, 10, 10), np.uint8)).save(tmp_path / "red.png")
    encoded = codes.encode_picture(tokenizer, tmp_path / "red.png")
    assert codes.decode_picture(tokenizer, encoded).shape == (1, 16, 16)


def test_another_model_is_refused(tokenizer, tiny, tmp_path):
    codes.encode_files(tokenizer, [tiny.picture], tmp_path / "c.safetensors")
    tokenizer.sha256 = "0" * 64
    with pytest.raises(UserError, match="made by another model"):
        codes.read_codes(tmp_path / "c.safetensors", tokenizer)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_file_cut_short(share, tokenizer, tiny, tmp_path):
    path = tmp_path / "c.safetensors"
    codes.encode_files(tokenizer, [tiny.data / "Standing"], path)
    cut(path, share)
    with pytest.raises(UserError, match="damaged or cut short"):
        codes.read_codes(path, tokenizer)


def test_what_is_no_file_of_codes(tokenizer, tiny, tmp_path):
    with pytest.raises(UserError, match="not a file of codes"):
        codes.read_codes(tiny.tokenizer / "model" / "model.safetensors", tokenizer)
    with pytest.raises(UserError, match="no file"):
        codes.read_codes(tmp_path / "nothing", tokenizer)


def test_nothing_is_written_when_much_is_broken(tokenizer, tmp_path):
    for i in range(3):
        Image.fromarray(stripes(i, True)).save(tmp_path / f"{i}.png")
    cut(tmp_path / "0.png")
    assert len(codes.encode_files(tokenizer, [tmp_path], tmp_path / "c.safetensors")) == 2  # one is let by
    cut(tmp_path / "1.png")
    with pytest.raises(UserError, match="broken"):
        codes.encode_files(tokenizer, [tmp_path], tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


def test_an_output_that_cannot_be(tokenizer, tiny, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for out in (tmp_path / "folder", tmp_path / "file" / "codes"):
        with pytest.raises(UserError, match="could not write"):
            codes.encode_files(tokenizer, [tiny.picture], out)


def test_bits():
    assert codes.bits(codes.Encoded("x", (8, 8), torch.zeros(1, 2, 3, dtype=torch.int64)), 16) == 24
