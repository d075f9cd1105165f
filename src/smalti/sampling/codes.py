"""Files of codes: pictures cut into codes by one model, to be laid again by the same.

A safetensors file with one int32 tensor (Q, *grid) a picture, and in its metadata the model's checksum and each
picture's name and true size.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smalti.checkpoint import saving
from smalti.errors import UserError
from smalti.model import Tokenizer
from smalti.sampling.files import listed, outputs, padded, read_signal, readable, unique_names, write_picture


@dataclass(frozen=True)
class Encoded:
    """One picture's codes (Q, *grid), its file's name and its true size (H, W)."""

    name: str
    size: tuple[int, ...]
    codes: Tensor


def encode_picture(tokenizer: Tokenizer, path: Path) -> Encoded:
    """A picture of any size: edges are repeated up to the stride, and the true size is kept beside the codes."""
    x = read_signal(path, tokenizer.signal)
    codes = tokenizer.encode(padded(x, tokenizer.network.stride)[None])[0]
    return Encoded(path.name, tuple(x.shape[1:]), codes)


def decode_picture(tokenizer: Tokenizer, encoded: Encoded) -> Tensor:
    """(C, H, W) in [-1, 1], of the true size."""
    height, width = encoded.size
    return tokenizer.decode(encoded.codes[None])[0, :, :height, :width]


def encode_files(tokenizer: Tokenizer, paths: Sequence[str | Path], out: Path) -> list[Encoded]:
    """Cut files, and all pictures in folders, into codes; broken ones are named and left out.

    Raises UserError when nothing could be read, or more than 5 % is broken; then nothing is written.
    """
    encoded = [each for _, each in readable(listed(paths), lambda path: encode_picture(tokenizer, path), "encode")]
    write_codes(tokenizer, encoded, out)
    return encoded


def write_codes(tokenizer: Tokenizer, encoded: Sequence[Encoded], out: Path) -> None:
    """Write a file of codes, whole or not at all."""
    listing = [{"name": each.name, "size": list(each.size)} for each in encoded]
    metadata = {"smalti": "codes", "model_sha256": tokenizer.sha256, "files": json.dumps(listing)}
    tensors = {f"{i:08d}": each.codes.to(torch.int32).contiguous() for i, each in enumerate(encoded)}
    fresh = out.with_name(f".{out.name}.{os.getpid()}.new")
    with saving(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, fresh, metadata)
            os.replace(fresh, out)
        finally:
            fresh.unlink(missing_ok=True)


def read_codes(path: Path, tokenizer: Tokenizer) -> list[Encoded]:
    """Read a file of codes. Raises UserError when it is damaged or was made by another model."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("smalti") != "codes":
                raise UserError(f"{path} is not a file of codes; `smalti encode` writes them")
            if metadata.get("model_sha256") != tokenizer.sha256:
                raise UserError(f"{path} was made by another model; decode it with the one that encoded it")
            listing = json.loads(metadata["files"])
            return [
                Encoded(str(each["name"]), tuple(map(int, each["size"])), file.get_tensor(f"{i:08d}").long())
                for i, each in enumerate(listing)
            ]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from error


def decode_files(tokenizer: Tokenizer, path: Path, out: Path) -> list[Path]:
    """Lay every picture of a file of codes; gives back the PNGs written."""
    encoded = read_codes(path, tokenizer)
    names = unique_names([Path(each.name) for each in encoded])
    for name, each in zip(names, encoded, strict=True):
        write_picture(out / name, decode_picture(tokenizer, each))
    return [out / name for name in names]


def reconstruct_files(tokenizer: Tokenizer, paths: Sequence[str | Path], out: Path) -> list[tuple[Path, float]]:
    """Each picture through codes and back, at its own size: what was written, and its PSNR in dB."""
    files = listed(paths)
    places = outputs(files, out)

    def there_and_back(file: Path) -> tuple[Tensor, Tensor]:
        return read_signal(file, tokenizer.signal), decode_picture(tokenizer, encode_picture(tokenizer, file))

    results = []
    for file, (x, again) in readable(files, there_and_back, "reconstruct"):
        write_picture(places[file], again)
        mse = float((again - x).square().mean()) / 4
        results.append((places[file], -10 * math.log10(mse) if mse else math.inf))
    return results


def bits(encoded: Encoded, size: int) -> float:
    """How many bits a picture's codes take, each code counted at log2 of the codebook's size."""
    return encoded.codes.numel() * math.log2(size)
