from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.sampling.drawn import drawn_run
from tests.tiny import cut, stripes

from smalti.data.image import read_image, to_pixels, to_signal
from smalti.errors import UserError
from smalti.model import load_tokenizer
from smalti.sampling import codes
from smalti.sampling.code_files import CodeReader
from smalti.tokenizers import tiling
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.rvq import RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig

SIZES = {"a/x": (13, 17), "b/x": (16, 16), "b/y": (5, 3), "b/z": (6, 2), "z": (21, 16), "zz": (1, 1)}


@pytest.fixture
def tokenizer(tiny):
    return load_tokenizer(tiny.tokenizer, "cpu")


@pytest.fixture
def residual(tmp_path):
    return load_tokenizer(drawn_run(tmp_path / "rvq", RVQConfig(codes=16, dim=4, stages=3)), "cpu")


@pytest.fixture
def continuous(tmp_path):
    return load_tokenizer(drawn_run(tmp_path / "kl", KLConfig(dim=3)), "cpu")


@pytest.fixture
def folder(tmp_path):
    """Pictures of sizes that no stride divides, smaller than one, two of one name."""
    for name, size in SIZES.items():
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stripes(len(name), True, size)).save(path)
    return tmp_path / "in"


def signal(path: Path) -> torch.Tensor:
    """(1, 1, H, W), its edges repeated up to multiples of 4 by numpy."""
    whole = to_signal(read_image(path, 1)).numpy()
    return torch.from_numpy(np.pad(whole, ((0, 0), (0, -whole.shape[1] % 4), (0, -whole.shape[2] % 4)), "edge"))[None]


def test_there_and_back_at_the_true_size(tokenizer, folder, tmp_path):
    codes.encode_files(tokenizer, [folder], tmp_path / "codes.safetensors")
    stored = list(CodeReader(tokenizer, tmp_path / "codes.safetensors"))
    assert [each.name for each in stored] == [f"{name}.png" for name in SIZES]
    assert [each.size for each in stored] == list(SIZES.values())
    paths = codes.decode_files(tokenizer, tmp_path / "codes.safetensors", tmp_path / "out")
    assert paths == [tmp_path / "out" / f"{name}.png" for name in SIZES]
    for each, path in zip(stored, paths, strict=True):
        expected = tokenizer.encode(signal(folder / each.name))
        assert torch.equal(each.codes[None], expected)
        height, width = each.size
        laid = to_pixels(tokenizer.decode(expected)[0, :, :height, :width])
        assert (laid.int() - read_image(path).int()).abs().max() <= 1  # batches may round otherwise


def test_equal_sizes_go_through_together(tokenizer, tiny, tmp_path, monkeypatch):
    seen = []
    encode, decode = tokenizer.encode, tokenizer.decode
    monkeypatch.setattr(tokenizer, "encode", lambda x, books: seen.append(len(x)) or encode(x, books))
    monkeypatch.setattr(tokenizer, "decode", lambda z: seen.append(len(z)) or decode(z))
    codes.encode_files(tokenizer, [tiny.data], tmp_path / "c.safetensors")
    codes.decode_files(tokenizer, tmp_path / "c.safetensors", tmp_path / "out")
    assert seen == [120, 120]
    monkeypatch.setattr(tiling, "MOST", 50 * 16 * 16)
    codes.encode_files(tokenizer, [tiny.data], tmp_path / "d.safetensors")
    assert seen[2:] == [50, 50, 20]
    one, other = (list(CodeReader(tokenizer, tmp_path / f"{name}.safetensors")) for name in "cd")
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(one, other, strict=True))


def test_what_it_takes(tokenizer, folder, tmp_path):
    done = codes.encode_files(tokenizer, [folder], tmp_path / "codes.safetensors")
    cells = sum(-(-height // 4) * -(-width // 4) for height, width in SIZES.values())
    pixels = sum(height * width for height, width in SIZES.values())
    assert done.pictures == len(SIZES)
    assert done.code_bits == cells * 4  # of 16 codes
    assert (done.pixels, done.pixel_bits) == (pixels, 8 * pixels)
    assert done.file_bytes == sum(path.stat().st_size for path in folder.rglob("*.png"))
    assert done.place == tmp_path / "codes.safetensors"


def test_reconstructions_and_their_error(tokenizer, folder, tmp_path):
    told = codes.reconstruct_files(tokenizer, [folder], tmp_path / "out")
    assert [path for path, _ in told] == [tmp_path / "out" / f"{name}.png" for name in SIZES]
    codes.encode_files(tokenizer, [folder], tmp_path / "c.safetensors")
    codes.decode_files(tokenizer, tmp_path / "c.safetensors", tmp_path / "laid")
    for path, psnr in told:
        name = path.relative_to(tmp_path / "out")
        rebuilt, original = read_image(path), read_image(folder / name)
        assert rebuilt.shape == original.shape
        mse = ((rebuilt.float() - original.float()) / 255).square().mean().item()
        assert psnr == pytest.approx(-10 * math.log10(mse), abs=0.5)  # the file is rounded, the figure is not
        assert (rebuilt.int() - read_image(tmp_path / "laid" / name).int()).abs().max() <= 1


def test_a_colour_picture_for_a_grey_model(tokenizer, tmp_path):
    Image.fromarray(np.full((16, 16, 3), (200, 10, 10), np.uint8)).save(tmp_path / "red.png")
    codes.encode_files(tokenizer, [tmp_path / "red.png"], tmp_path / "c.safetensors")
    (path,) = codes.decode_files(tokenizer, tmp_path / "c.safetensors", tmp_path / "out")
    assert read_image(path).shape == (1, 16, 16)


# --- residual and continuous tokenizers ------------------------------------------------------------------------------


def test_the_first_codebooks(residual, tiny, tmp_path):
    path, x = tmp_path / "c.safetensors", to_signal(read_image(tiny.picture, 1))[None]
    for count in (1, 2, 3, None):
        done = codes.encode_files(residual, [tiny.picture], path, count)
        (stored,) = CodeReader(residual, path)
        assert torch.equal(stored.codes[None], residual.encode(x)[:, :count])
        assert done.code_bits == (count or 3) * 16 * 4
        (laid,) = codes.decode_files(residual, path, tmp_path / "laid")
        assert torch.equal(read_image(laid), to_pixels(residual.decode(stored.codes[None])[0]))
        ((again, _),) = codes.reconstruct_files(residual, [tiny.picture], tmp_path / "again", count)
        assert torch.equal(read_image(again), read_image(laid))
    for count in (0, 4):
        for verb in (codes.encode_files, codes.reconstruct_files):
            with pytest.raises(UserError, match=f"{count} codebooks: this tokenizer has 1 to 3"):
                verb(residual, [tiny.picture], tmp_path / "d", count)
    assert not (tmp_path / "d").exists()


def test_codebooks_of_a_tokenizer_that_is_not_residual(tokenizer, tiny, tmp_path):
    for verb in (codes.encode_files, codes.reconstruct_files):
        with pytest.raises(UserError, match="not residual"):
            verb(tokenizer, [tiny.picture], tmp_path / "d", 1)


def test_a_continuous_tokenizer(continuous, tokenizer, tiny, tmp_path):
    for verb in (
        lambda: codes.encode_files(continuous, [tiny.picture], tmp_path / "c.safetensors"),
        lambda: codes.decode_files(continuous, tmp_path / "c.safetensors", tmp_path / "out"),
        lambda: codes.reconstruct_files(continuous, [tiny.picture], tmp_path / "out", 1),
    ):
        with pytest.raises(UserError, match="this tokenizer is continuous"):
            verb()
    ((path, psnr),) = codes.reconstruct_files(continuous, [tiny.picture], tmp_path / "out")
    x = to_signal(read_image(tiny.picture, 1))[None]
    again = continuous.decode_latents(continuous.latents(x))
    assert torch.equal(read_image(path), to_pixels(again[0]))
    assert psnr == pytest.approx(-10 * math.log10((again - x).square().mean().item() / 4))


# --- what is broken or in the way ------------------------------------------------------------------------------------


def test_nothing_is_written_when_much_is_broken(tokenizer, tmp_path):
    for i in range(3):
        Image.fromarray(stripes(i, True)).save(tmp_path / f"{i}.png")
    cut(tmp_path / "0.png")
    # one is let by
    assert codes.encode_files(tokenizer, [tmp_path], tmp_path / "c.safetensors").pictures == 2
    cut(tmp_path / "1.png")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="broken"):
        codes.encode_files(tokenizer, [tmp_path], tmp_path / "d.safetensors")
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_that_cannot_be(tokenizer, tiny, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for out in (tmp_path / "folder", tmp_path / "file" / "codes"):
        with pytest.raises(UserError, match="could not write"):
            codes.encode_files(tokenizer, [tiny.picture], out)


def test_pictures_of_others_are_not_replaced(tokenizer, tiny, tmp_path):
    codes.encode_files(tokenizer, [tiny.data / "Standing"], tmp_path / "c.safetensors")
    mine = tmp_path / "out" / "003.png"
    mine.parent.mkdir()
    Image.fromarray(stripes(1, True)).save(mine)
    before = mine.read_bytes()
    with pytest.raises(UserError, match=r"003\.png would be overwritten, and smalti did not write it"):
        codes.decode_files(tokenizer, tmp_path / "c.safetensors", tmp_path / "out")
    assert list(mine.parent.iterdir()) == [mine]
    assert mine.read_bytes() == before
    mine.unlink()
    for _ in range(2):  # its own may be
        assert len(codes.decode_files(tokenizer, tmp_path / "c.safetensors", tmp_path / "out")) == 60


def test_a_link_that_leads_out(tokenizer, folder, tmp_path):
    codes.encode_files(tokenizer, [folder], tmp_path / "c.safetensors")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of"):
        codes.decode_files(tokenizer, tmp_path / "c.safetensors", tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


# --- large pictures --------------------------------------------------------------------------------------------------


def test_a_picture_in_tiles(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("smalti.device.multiplies_bf16", lambda _: False)
    Image.fromarray(stripes(3, True, (301, 203))).save(tmp_path / "x.png")
    codes.encode_files(tokenizer, [tmp_path / "x.png"], tmp_path / "whole.safetensors")
    codes.decode_files(tokenizer, tmp_path / "whole.safetensors", tmp_path / "whole")
    monkeypatch.setattr(tiling, "MOST", 64 * 64)
    codes.encode_files(tokenizer, [tmp_path / "x.png"], tmp_path / "tiled.safetensors")
    codes.decode_files(tokenizer, tmp_path / "whole.safetensors", tmp_path / "tiled")
    (whole,), (tiled,) = (CodeReader(tokenizer, tmp_path / f"{name}.safetensors") for name in ("whole", "tiled"))
    assert (whole.codes != tiled.codes).float().mean() < 1e-3
    one, other = (read_image(tmp_path / name / "x.png").int() for name in ("whole", "tiled"))
    assert one.shape == (1, 301, 203)
    assert (one - other).abs().max() <= 1


@pytest.mark.slow
def test_4096_pixels_square_in_bounded_memory(tmp_path):
    """A network 128 wide, in processes of their own: 1.1 GiB each, of which Python and torch are 0.3."""
    run = drawn_run(tmp_path / "run", VQConfig(codes=512, dim=32), channels=3, width=128, strides=(2, 2))
    noise = np.random.default_rng(0).integers(0, 256, (4096, 4096, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png", compress_level=1)
    for verb in (("encode", "large.png", "--out", "c.safetensors"), ("decode", "c.safetensors", "--out", "out")):
        command = [sys.executable, "-m", "smalti.cli", verb[0], run, *verb[1:], "--device", "cpu"]
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
        _, process.returncode, used = os.wait4(process.pid, 0)
        assert process.returncode == 0
        print(f"{verb[0]}: {used.ru_maxrss / 2**20:.2f} GiB")
        assert used.ru_maxrss < 1.5 * 2**20
    assert read_image(tmp_path / "out" / "large.png").shape == (3, 4096, 4096)
