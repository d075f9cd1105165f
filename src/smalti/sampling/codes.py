"""Pictures cut into codes, from files and into files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import torch
from torch import Tensor

from smalti.errors import UserError
from smalti.model import BATCH, Tokenizer
from smalti.sampling.code_files import SHARD_BYTES, CodeReader, CodeWriter, Encoded
from smalti.sampling.files import (
    named,
    outputs,
    padded,
    read_signal,
    readable,
    spare,
    unique_names,
    write_picture,
)
from smalti.tokenizers import tiling
from smalti.training.log import ProgressLine


@dataclass
class Size:
    """What codes take, beside what they were made from.

    code_bits: each code counted at log2 of the codebook's size. pixel_bits: 8 for every channel of every pixel, as the
    model reads them. file_bytes: those of the files. `place`: where the codes stand, the index of several files.
    """

    place: Path
    pictures: int = 0
    code_bits: float = 0.0
    pixels: int = 0
    pixel_bits: int = 0
    file_bytes: int = 0


def encode_files(
    tokenizer: Tokenizer,
    paths: Sequence[str | Path],
    out: Path,
    codebooks: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Size:
    """Cut files, and all pictures in folders, into codes; broken ones are named and left out.

    Pictures may have any size: edges are repeated up to the stride, and the true size is kept beside the codes. Of a
    folder, however large, only names and the codes of one shard are in memory at once. Raises UserError when nothing
    could be read, or more than 5 % is broken, or there are not so many `codebooks`; then nothing is written.
    """
    tokenizer.codebooks(codebooks)
    names, size = named(paths), tokenizer.network.codes.size
    with CodeWriter(tokenizer, out, shard_bytes) as writer:
        done = Size(writer.out)
        for batch in _alike(tokenizer, list(names), "encode"):
            codes = tokenizer.encode(_stacked(tokenizer, batch), codebooks)
            for (file, x), each in zip(batch, codes, strict=True):
                writer.add(Encoded(names[file], tuple(x.shape[1:]), each))
                done.pictures += 1
                done.code_bits += each.numel() * math.log2(size)
                done.pixels += math.prod(x.shape[1:])
                done.pixel_bits += 8 * x.numel()
                done.file_bytes += file.stat().st_size
    done.place = writer.place
    return done


def decode_files(tokenizer: Tokenizer, path: Path, out: Path) -> list[Path]:
    """Lay every picture of a file or set of codes, at its true size and under its name; gives back the PNGs written.

    Raises UserError as `CodeReader` does, for a name that leads out of the folder, and where a file would be replaced
    that is no picture of ours; then nothing is written.
    """
    reader = CodeReader(tokenizer, path)
    places = _places(reader, out)
    stride, laid = tokenizer.network.stride, 0
    with ProgressLine("decode", len(places)) as line:
        for shape, alike in groupby(reader, key=lambda each: each.codes.shape):
            rows = _at_once(stride ** (len(shape) - 1) * math.prod(shape[1:]))
            while batch := list(islice(alike, rows)):
                x = tokenizer.decode(torch.stack([each.codes for each in batch]))
                for place, each, whole in zip(places[laid : laid + len(batch)], batch, x, strict=True):
                    write_picture(place, _cropped(whole, each.size), {"smalti:model": tokenizer.sha256})
                laid += len(batch)
                line.update(laid)
    return places


def reconstruct_files(
    tokenizer: Tokenizer, paths: Sequence[str | Path], out: Path, codebooks: int | None = None
) -> list[tuple[Path, float]]:
    """Each picture through the tokenizer and back, at its own size: what was written, and its PSNR in dB."""
    if codebooks is not None:
        tokenizer.codebooks(codebooks)
    files = named(paths)
    places = outputs(files, out)
    results = []
    for batch in _alike(tokenizer, list(files), "reconstruct"):
        rebuilt = tokenizer.reconstruct(_stacked(tokenizer, batch), codebooks)
        for (file, x), whole in zip(batch, rebuilt, strict=True):
            again = _cropped(whole, x.shape[1:])
            write_picture(places[file], again, {"smalti:model": tokenizer.sha256})
            mse = float((again - x).square().mean()) / 4
            results.append((places[file], -10 * math.log10(mse) if mse else math.inf))
    return results


def _places(reader: CodeReader, out: Path) -> list[Path]:
    """Where each picture goes. Raises UserError where that is outside, or somebody else's."""
    places = [out / name for name in unique_names([entry.name for entry in reader.entries])]
    inside = out.resolve()
    for place in places:
        if not place.resolve().is_relative_to(inside):  # through a link, say
            raise UserError(f"{place} leads out of {out}; choose another --out")
    spare(places)
    return places


def _alike(tokenizer: Tokenizer, files: Sequence[Path], title: str) -> Iterator[list[tuple[Path, Tensor]]]:
    """Pictures (C, H, W) that follow each other and take equally many codes, as many as a network sees at once."""
    stride = tokenizer.network.stride
    signals = readable(files, lambda path: read_signal(path, tokenizer.signal), title)
    for grid, alike in groupby(signals, key=lambda pair: [-(-side // stride) for side in pair[1].shape[1:]]):
        rows = _at_once(math.prod(grid) * stride ** len(grid))
        while batch := list(islice(alike, rows)):
            yield batch


def _at_once(samples: int) -> int:
    return max(1, min(BATCH, tiling.MOST // samples))


def _stacked(tokenizer: Tokenizer, batch: Sequence[tuple[Path, Tensor]]) -> Tensor:
    return torch.stack([padded(x, tokenizer.network.stride) for _, x in batch])


def _cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    return x[(slice(None), *(slice(side) for side in size))]
