"""The fixed judge: a small classifier of the real training pictures, whose opinion and features rate new ones.

Its recipe does not depend on what it judges, so that runs compare; its weights are kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from smalti.checkpoint import saving
from smalti.config import Config
from smalti.data.fetch import cache_dir
from smalti.data.image import to_pixels, to_signal
from smalti.device import autocast

FORMAT = 2  # counts up when the network or its training changes, so that an older file is not taken for a newer one
AT_ONCE = 1 << 20  # values of the pictures judged in one go

Progress = Callable[[int, int], None]  # (steps done, steps in all)


class ClassifierConfig(Config):
    """The judge's recipe. Pictures are not mirrored unless asked for: mirrored digits and letters are other ones."""

    width: int = Field(64, ge=8, multiple_of=4)
    passes: float = Field(4.5, gt=0)
    least_steps: int = Field(400, ge=1)  # a small collection is seen more often instead
    batch: int = Field(256, ge=2)
    lr: float = Field(6e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    smoothing: float = Field(0.1, ge=0, lt=1)
    shift: int | None = Field(None, ge=0, description="pixels a picture is moved by; a 16th of its side unless said")
    flip: bool = False
    seed: int = 0


class Judge(Protocol):
    """What turns pictures into features to compare. `name` tells which one it was."""

    name: str

    def features(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) -> float32 (N, F). uint8, or float in [-1, 1] that is rounded to 8 bits as a file would be."""
        ...


class PixelFeatures:
    """The judge where there are no labels: the pictures themselves, averaged down to at most 16 × 16."""

    name = "pixels"

    def features(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) -> float32 (N, F), F = C * min(H, 16) * min(W, 16)."""
        size = (min(pictures.shape[-2], 16), min(pictures.shape[-1], 16))
        small = [F.adaptive_avg_pool2d(to_signal(piece), size).flatten(1).cpu() for piece in _pieces(pictures)]
        return torch.cat(small)


class Classifier:
    """A trained judge: classes, and the activations before the last layer as features."""

    name = "classifier"

    def __init__(self, network: ConvNet, accuracy: float | None = None) -> None:
        self.network = network.eval()
        self.accuracy = accuracy
        """Share of the held-out pictures it was right about when trained, in [0, 1]; None without any."""

    def features(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) -> float32 (N, F): uint8, or float in [-1, 1] that is rounded to 8 bits first."""
        return self._apply(self.network.features, pictures)

    def logits(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) -> float32 (N, classes)."""
        return self._apply(self.network, pictures)

    def predict(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) -> the likeliest class of each, int64 (N,)."""
        return self.logits(pictures).argmax(1)

    def agreement(self, pictures: Tensor, labels: Tensor) -> float:
        """The share of pictures taken for their label (int64 (N,)), in [0, 1]."""
        return (self.predict(pictures) == labels.cpu()).double().mean().item()

    @torch.inference_mode()
    def _apply(self, function: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        # fp32: a judge's figures should not depend on what the hardware rounds to
        return torch.cat([function(to_signal(piece.to(device))).float().cpu() for piece in _pieces(pictures)])


def judge(
    pixels: Tensor,
    labels: Tensor | None,
    fingerprint: str,
    held_out: tuple[Tensor, Tensor] | None = None,
    config: ClassifierConfig | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Classifier | PixelFeatures:
    """The judge of a source: its classifier, from the cache or trained now; pixels when there is nothing to classify.

    `pixels` uint8 (N, C, H, W) and `labels` int64 (N,) are the real training split, `fingerprint` the source's;
    `held_out` are other real pictures and labels, to know how far the judge itself can be believed.
    """
    if labels is None or len(labels.unique()) < 2:
        return PixelFeatures()
    config, device = config or ClassifierConfig(), device or torch.device("cpu")
    path = cache_path(config, fingerprint, pixels, labels)
    kept = read_classifier(path, device)
    if kept is not None and (kept.accuracy is not None or held_out is None):
        return kept
    trained = kept or Classifier(train_classifier(pixels, labels, config, device, progress))
    trained.accuracy = trained.agreement(*held_out) if held_out is not None else None
    write_classifier(path, trained)
    return trained


def train_classifier(
    pixels: Tensor,
    labels: Tensor,
    config: ClassifierConfig | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> ConvNet:
    """Train the judge on uint8 (N, C, H, W) and int64 (N,); the same seed gives the same network on one machine."""
    config, device = config or ClassifierConfig(), device or torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = ConvNet(pixels.shape[1], max(pixels.shape[2:]), int(labels.max()) + 1, config.width)
    network.look_at(pixels)
    network = network.to(device).train()
    batch = min(config.batch, len(pixels))
    # 1 pixel of 28, 4 of 64: a large picture moved by one is the same picture, which the network learns by heart
    shift = max(1, max(pixels.shape[2:]) // 16) if config.shift is None else config.shift
    steps = max(math.ceil(config.passes * len(pixels) / batch), config.least_steps)
    # Muon (Jordan et al. 2024) on the kernels, AdamW on the few other parameters
    kernels = [p for name, p in network.named_parameters() if name.endswith("kernel")]
    others = [p for name, p in network.named_parameters() if not name.endswith("kernel")]
    optimizers = [
        torch.optim.Muon(kernels, momentum=0.9, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    ]
    generator = torch.Generator().manual_seed(config.seed)
    for step, rows in zip(range(steps), _orders(len(pixels), batch, generator), strict=False):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * _one_cycle((step + 0.5) / steps)
        x = to_signal(moved(pixels, rows, shift, config.flip, generator).to(device))
        with autocast(device):
            logits = network(x)
        F.cross_entropy(logits.float(), labels[rows].to(device), label_smoothing=config.smoothing).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if progress is not None:
            progress(step + 1, steps)
    return network.eval()


def moved(pixels: Tensor, rows: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """The pictures `rows` (B,) of (N, C, H, W), each moved by up to `shift` pixels with its edge repeated.

    With `flip`, half of them mirrored. -> (B, C, H, W).
    """
    height, width = pixels.shape[2:]
    across = (len(rows), 1)
    ys = torch.arange(height) + torch.randint(-shift, shift + 1, across, generator=generator)
    xs = torch.arange(width) + torch.randint(-shift, shift + 1, across, generator=generator)
    ys, xs = ys.clamp(0, height - 1), xs.clamp(0, width - 1)
    if flip:
        xs = torch.where(torch.rand(across, generator=generator) < 0.5, width - 1 - xs, xs)
    # indices on both sides of a slice put the slice last: (B, H, W, C), which is channels-last already
    return pixels[rows[:, None, None], :, ys[:, :, None], xs[:, None, :]].permute(0, 3, 1, 2)


class KernelConv(nn.Module):
    """3 × 3 convolution, batch normalisation, ReLU. The kernel is a matrix (out, 9 * in), as Muon wants it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(outputs, 9 * inputs))
        nn.init.kaiming_uniform_(self.kernel, a=math.sqrt(5))
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.view(len(self.kernel), 3, 3, -1).permute(0, 3, 1, 2)  # channels-last in memory
        return F.relu(self.norm(F.conv2d(x, weight, padding=1)), inplace=True)


class ConvNet(nn.Module):
    """(B, C, H, W) in [-1, 1] -> (B, classes).

    Patches keep the first grid at 16 × 16 or less, whatever the size. The grid is halved by folding 2 × 2 neighbours
    into channels, then by their maximum: on a processor, strided convolutions cost more than all else here.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, side: int, classes: int, width: int) -> None:
        super().__init__()
        self.shape = (channels, side, classes, width)
        self.patch = max(2, math.ceil(side / 16))
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))
        self.stem = KernelConv(channels * self.patch**2, width // 4)
        self.middle = nn.ModuleList(KernelConv(width, width) for _ in range(2))
        self.widen = KernelConv(width, 2 * width)
        self.last = KernelConv(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def look_at(self, pixels: Tensor) -> None:
        """Take the mean and the deviation of each channel from uint8 (N, C, H, W), to normalise by."""
        values = to_signal(torch.arange(256, dtype=torch.uint8)).double()
        for channel in range(pixels.shape[1]):
            share = torch.bincount(pixels[:, channel].flatten(), minlength=256).double()
            share /= share.sum()
            mean = (share * values).sum()
            self.mean[channel] = mean
            self.deviation[channel] = (share * (values - mean).square()).sum().sqrt().clamp(min=1e-2)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 2 * width)."""
        x = _fold((x - self.mean) / self.deviation, self.patch)
        x = _fold(self.stem(x), 2)
        for block in self.middle:
            x = x + block(x)
        x = self.widen(F.max_pool2d(x, 2, ceil_mode=True))
        x = x + self.last(x)
        # over the whole grid; unlike a mean, its gradient stays channels-last
        return F.avg_pool2d(x, x.shape[-2:]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _fold(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C * side², H / side, W / side) rounded up: each patch's pixels become channels."""
    bottom, right = -x.shape[2] % side, -x.shape[3] % side
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return F.pixel_unshuffle(x, side).contiguous(memory_format=torch.channels_last)


def cache_path(config: ClassifierConfig, fingerprint: str, pixels: Tensor, labels: Tensor) -> Path:
    """Where the classifier of this recipe and this data is kept."""
    told = [FORMAT, config.model_dump(mode="json"), fingerprint, list(pixels.shape), int(labels.max()) + 1]
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "classifiers" / f"{name}.safetensors"


def write_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier's file, whole or not at all."""
    tensors = {name: value.cpu().contiguous() for name, value in classifier.network.state_dict().items()}
    about = {"shape": json.dumps(classifier.network.shape), "accuracy": json.dumps(classifier.accuracy)}
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, fresh, metadata=about)
            os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def read_classifier(path: Path, device: torch.device | None = None) -> Classifier | None:
    """The classifier kept in a file; None when there is none or it is damaged, as it can be trained again."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            network = ConvNet(*json.loads(about["shape"]))
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return Classifier(network.to(device or "cpu"), json.loads(about["accuracy"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def _pieces(pictures: Tensor) -> Iterator[Tensor]:
    """Some pictures at a time, as uint8."""
    if pictures.dtype != torch.uint8:
        pictures = to_pixels(pictures)
    yield from pictures.split(max(1, AT_ONCE // pictures[0].numel()) if len(pictures) else 1)


def _orders(length: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Full batches of row numbers, one shuffle after the other without end."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(length, generator=generator)])
        yield left[:batch]
        left = left[batch:]


def _one_cycle(along: float, rise: float = 0.15) -> float:
    """Up to 1 in the first part of the training, then straight down to 0; `along` in [0, 1]."""
    return along / rise if along < rise else (1 - along) / (1 - rise)
