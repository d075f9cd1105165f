"""The one place that decides where tensors live and in which precision products are taken."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.errors import UserError

LEAST_ROOMY = 4 << 20  # bytes: two huge pages

Precision = Literal["auto", "fp32", "bf16"]


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first CUDA device, else Apple's, else the processor. Raises UserError when `name` is not here."""
    keep_freed_memory()
    flush_denormals()
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not on this machine; use cpu or auto") from error
    return device


@cache
def keep_freed_memory() -> None:
    """Let the C library keep blocks that are freed, instead of giving every large one back to the system.

    A step on a processor makes and drops hundreds of tensors of some megabytes; fetching their pages anew each time
    costs a tenth of the step and more. Only glibc is asked, which is what Linux usually has.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)


@cache
def flush_denormals() -> None:
    """Let numbers below 1e-38 be 0.

    A saturated activation has gradients so small, and processors take a hundred times as long over them: a training in
    fp32 came down from 5 steps a second to 1 (on Intel's). Threads take this over from the one that starts them, so it
    is to be asked for before the first product.
    """
    torch.set_flush_denormal(True)


@cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether bf16 products are quicker here than fp32: Ampere and later GPUs, AMX, AVX512-BF16 of AMD.

    Intel's with AVX512-BF16 but without tiles (or where a virtual machine hides them) multiply bf16 at half the pace of
    fp32: measured 0.18 against 0.33 TFLOP/s on two cores.
    """
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device_type == "cpu":
        # torch has no public question for this; a build that lacks these two answers no
        tiles, pairs = (
            getattr(torch.cpu, ask, lambda: False)() for ask in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
        return tiles or (pairs and "intel" not in processor_name().lower())
    return False


def product_dtype(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """The dtype that convolutions and matrix products run in."""
    if precision == "auto":
        return torch.bfloat16 if multiplies_bf16(device.type) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision = "auto") -> Iterator[None]:
    """Products in `product_dtype`, everything else as it is written."""
    dtype = product_dtype(device, precision)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        yield


def product_dtype_of(x: Tensor) -> torch.dtype:
    """The dtype in which a product takes x here: that of autocast within its region, otherwise that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@contextlib.contextmanager
def weights_ready(network: nn.Module) -> Iterator[None]:
    """The linear layers' weights in the dtype that products run in here, within the block and without gradients.

    Autocast would cast them anew at every call: of a network that is asked hundreds of times, a tenth of the time.
    """
    kind = next(network.parameters()).device.type
    held = []
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        for layer in network.modules():
            if isinstance(layer, nn.Linear) and layer.weight.dtype != dtype:
                held.append((layer, layer.weight))
                layer.weight = nn.Parameter(layer.weight.to(dtype), requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in held:
            layer.weight = weight


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """fp32 inside an autocast region: distances, losses and softmaxes over codes."""
    if not torch.is_autocast_enabled(device.type):
        yield  # to enter and leave would take as long as some of the small products inside
        return
    with torch.autocast(device.type, enabled=False):
        yield


def full_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (n, D) times weight (K, D) transposed, plus bias (K,), in fp32 and without a gradient: (n, K).

    On a processor oneDNN takes it where torch has it: the BLAS that torch is built with is up to three times slower on
    processors that are not Intel's.
    """
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # torch has no public name for it
        if linear is not None and len(x):
            return linear(x, weight, bias, "none", [], "")
    return torch.addmm(bias, x, weight.t())


def product(weight: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """x (…, in) times a weight (out, in) transposed, as a function of x in `dtype`, without a gradient.

    The weight is taken as it is now. On a processor it is laid out for oneDNN once, where torch has that: for a hundred
    rows the product takes as long as laying it out.
    """
    weight = weight.detach().to(dtype).contiguous()
    packs, linear = (getattr(torch.ops.mkldnn, name, None) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or packs is None or linear is None:
        return lambda x: F.linear(x, weight)
    packed = packs(weight)
    return lambda x: linear(x, packed, None, "none", [], "")


def decoding_dtype(device: torch.device, rows: int) -> torch.dtype:
    """The dtype of products while decoding one token at a time.

    Where tiles do the multiplying (AMX), a handful of rows leaves them nearly empty and fp32 is quicker.
    """
    if device.type == "cpu" and rows < 8 and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return torch.float32
    return product_dtype(device)


def roomy(shape: Sequence[int], device: torch.device) -> Tensor:
    """An fp32 tensor of zeros for much memory that is read in small pieces, such as a cache of keys and values.

    On Linux it lies in huge pages where the system grants them: looking up small ones would cost as much as reading.
    """
    size = 4 * math.prod(shape)
    if device.type != "cpu" or size < LEAST_ROOMY or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(tuple(shape), device=device)
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(tuple(shape))


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory() -> float:
    """The memory of this machine in bytes; infinite where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return math.inf


def peak_memory(device: torch.device) -> float:
    """The most memory used so far, in GiB: the device's own, or this process's on a processor (0 where unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
