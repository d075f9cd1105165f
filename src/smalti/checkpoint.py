"""A model folder that rebuilds itself, and folders and files that appear whole or not at all.

model/config.json          format, what the model is (JSON), SHA-256 of the weights
model/model.safetensors    the weights
model/README.md            the model card
model/tokenizers/NAME/     a generator's tokenizers, each a model folder
model/tokenizers/text/     what cuts text, if it reads any
model/text_encoder/        a model folder: what reads its captions, if that is a model of text and pictures
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smalti.errors import UserError

TEXT_FILE = "tokenizers/text/tokenizer.json"  # in the folder of a model of text
FORMAT = 1
SHIPPED = Path(__file__).parent / "shipped"
try:
    VERSION = metadata.version("smalti")
except metadata.PackageNotFoundError:  # run from a source tree
    VERSION = "unknown"


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees the old text or the new, never half of one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(fresh, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into words."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"could not write {path}: {error}; earlier results are untouched") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"disk full while writing {path}; earlier results are untouched: free space") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(f"not allowed to write {path}; choose another --out") from error
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"could not write {path}: {error.filename} is in the way; choose another --out") from error
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under another name, then put it in place of the old one.

    Two renames cannot be one, so a kill between them leaves `path` missing and the new folder complete beside it;
    `settled` finds it there.
    """
    fresh, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    settled(path)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with saving(path):
            fresh.mkdir(parents=True)
            yield fresh
            (fresh / ".complete").touch()
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(fresh, path)
    (path / ".complete").unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)


def settled(path: Path) -> Path:
    """Finish a replacement that a kill cut short, then give the folder back."""
    fresh, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    if not path.exists():
        if (fresh / ".complete").exists():
            os.replace(fresh, path)
        elif old.exists():
            os.replace(old, path)
    if (path / ".complete").exists():  # asked first, for a folder on a read-only disk may not even be tried
        (path / ".complete").unlink()
    return path


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    card: str,
    tokenizers: Mapping[str, Path] | None = None,
    files: Mapping[str, str] | None = None,
    models: Mapping[str, Path] | None = None,
) -> None:
    """Write a model folder in place of what was there.

    `tokenizers` and `models` are model folders that travel along, `files` the texts of further files by their paths
    inside it.
    """
    with new_folder(folder) as fresh:
        _write_weights(fresh, config, tensors)
        (fresh / "README.md").write_text(card, encoding="utf-8")
        for name, source in (tokenizers or {}).items():
            shutil.copytree(source, fresh / "tokenizers" / name)
        for name, source in (models or {}).items():
            shutil.copytree(source, fresh / name)
        for path, text in (files or {}).items():
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            (fresh / path).write_text(text, encoding="utf-8")


def _write_weights(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Weights, and the config that tells them apart from others."""
    weights = folder / "model.safetensors"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, weights)
    told = {**config, "format": FORMAT, "weights_sha256": sha256(weights)}
    (folder / "config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def shipped() -> list[str]:
    """The names of the models that come with smalti."""
    return sorted(each.parent.name for each in SHIPPED.glob("*/config.json"))


def export(path: str | Path, out: Path, dtype: torch.dtype) -> int:
    """A copy of a model folder with weights in another dtype: how many bytes it takes.

    The tokenizers it carries stay as they are: rounded, they would cut the same pictures into other codes.
    Raises UserError where there is no model, and where `out` is there already.
    """
    folder = model_folder(path)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} is there already; choose another --out")
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out} lies inside the model {folder}; choose another --out")
    config = read_config(folder)
    weights = read_weights(folder, config)
    cast = {name: each.to(dtype) if each.is_floating_point() else each for name, each in weights.items()}
    with new_folder(out) as fresh:
        shutil.copytree(folder, fresh, dirs_exist_ok=True)
        (fresh / "model.safetensors").unlink()
        _write_weights(fresh, config, cast)
    return sum(each.stat().st_size for each in out.rglob("*") if each.is_file())


def model_folder(path: str | Path) -> Path:
    """The model folder in a run, or the path itself when it is one, or the model of that name that comes with smalti.

    Raises UserError when there is none.
    """
    path = Path(path)
    for folder in (settled(path / "model"), path, SHIPPED / path if str(path) in shipped() else path):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        there = f"; these models come with smalti: {', '.join(shipped())}" if shipped() else ""
        raise UserError(f"no run at {path}; `smalti runs` lists what has been trained{there}")
    if (path / "recipe.json").exists():
        raise UserError(f"{path} holds no model yet; continue it with: smalti train --resume {path}")
    raise UserError(f"{path} is not a run: it has no model/config.json")


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a model folder, checked for format."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = config["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / 'config.json'} is damaged: {error}") from error
    if found != FORMAT:
        raise UserError(f"{folder} has format {found}, this smalti reads format {FORMAT}: install a newer smalti")
    return config


def read_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a model folder, refused when a byte differs from what was written."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: the model folder is not whole")
    if sha256(path) != config.get("weights_sha256"):
        raise UserError(f"{path} is damaged: its checksum is not the one in config.json; copy the folder again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}; copy the folder again") from error
