"""What this machine is, what smalti will choose on it, and how fast it really is."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from smalti.data.fetch import cache_dir
from smalti.device import multiplies_bf16, pick_device, processor_name, product_dtype, synchronize

NEEDED = (
    "torch",
    "pydantic",
    "typer",
    "safetensors",
    "tokenizers",
    "numpy",
    "pillow",
    "rich",
    "matplotlib",
    "torchmetrics",
    "pooch",
)


def examine() -> dict[str, Any]:
    """Plain values: versions and what is missing, device, precision, measured TFLOP/s of products, free disk."""
    device = pick_device()
    versions, missing = {}, []
    for name in ("smalti", *NEEDED):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "missing": missing or "nothing",
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "device": str(device)
        if device.type == "cpu"
        else f"{device} ({torch.cuda.get_device_name(device)})"
        if device.type == "cuda"
        else str(device),
        "precision": str(product_dtype(device)).removeprefix("torch."),
        "multiplies bf16": multiplies_bf16(device.type),
        "product TFLOP/s": {
            name: round(product_speed(device, dtype), 3)
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        },
        "cache": str(cache_dir()),
        "free disk, GiB": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
    }


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of the products a small transformer takes: (4096, 256) by (256, 1024), the best of ten."""
    a = torch.randn(4096, 256, device=device).to(dtype)
    b = torch.randn(1024, 256, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        torch.nn.functional.linear(a, b)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * a.shape[0] * a.shape[1] * b.shape[0] / best / 1e12
