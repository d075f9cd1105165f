"""What every model over grids of codes has: its tables, its network, its reading order, its classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smalti.config import CodeSpec
from smalti.data.batch import Batch
from smalti.data.order import uniform
from smalti.errors import UserError
from smalti.layers.transformer import Transformer, TransformerConfig
from smalti.paradigms.base import Paradigm

LABEL_STREAM = 1  # of random numbers: whose class is hidden


class CodeModel(Paradigm):
    """Codes (B, Q, *grid) are read position by position, the codebooks of one position one after the other.

    `specials` are tokens beside the codes, such as a mask; the head never says one of them.
    """

    positions: Tensor

    def __init__(
        self, network: TransformerConfig, codes: CodeSpec, classes: int, specials: int = 0, conditioned: bool = False
    ) -> None:
        super().__init__()
        self.codes, self.classes = codes, classes
        width = network.width
        self.label = nn.Embedding(classes + 1, width)  # the last row is "no class"
        self.token = nn.Embedding(codes.codebooks * codes.size + specials, width)
        self.place = nn.Parameter(torch.randn(codes.length, width) * 0.02)
        self.network = Transformer(network, conditioned)
        self.head = nn.Linear(width, codes.size, bias=False)
        for table in (self.label, self.token):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        self.register_buffer("positions", grid_positions(codes), persistent=False)

    def players(self) -> dict[str, nn.Module]:
        return {"network": self}

    def sequence(self, codes: Tensor) -> Tensor:
        """(B, Q, *grid) -> (B, T), positions in raster order, the codebooks of each position together."""
        return as_sequence(codes)

    def grid(self, sequence: Tensor) -> Tensor:
        """(B, T) -> (B, Q, *grid), the inverse of `sequence`."""
        return as_grid(sequence, self.codes)

    def embed(self, sequence: Tensor, start: int = 0) -> Tensor:
        """Codes (B, t) that stand from place `start` on -> (B, t, width); a special is `size` and what follows it."""
        codes = self.codes
        if codes.codebooks > 1:
            place = torch.arange(start, start + sequence.shape[1], device=sequence.device) % codes.codebooks
            # specials stand once, behind the codes of all codebooks
            last = codes.codebooks - 1
            sequence = sequence + torch.where(sequence < codes.size, place, last) * codes.size
        return self.token(sequence)

    def shown_labels(self, batch: Batch, dropout: float) -> Tensor:
        """The class ids (B,) of a batch; while training a share of them is hidden."""
        return shown_labels(batch, self.classes, dropout if self.training else 0.0)

    def labels_of(self, labels: Tensor | None, n: int, device: torch.device) -> Tensor:
        """Class ids (n,), "no class" where there are none. Raises UserError on ids that do not exist."""
        return class_ids(labels, n, self.classes, device)

    def known_sequence(
        self, known: Tensor | None, mask: Tensor | None, n: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The sequence (n, T) with its known codes, 0 elsewhere, and which of them are kept: bool (n, T).

        Raises UserError on one without the other, on another shape, and on codes that do not exist.
        """
        return known_codes(self.codes, known, mask, n, device)


def as_sequence(codes: Tensor) -> Tensor:
    """(B, Q, *grid) -> (B, T), positions in raster order, the codebooks of each position together."""
    return codes.flatten(2).transpose(1, 2).flatten(1)


def as_grid(sequence: Tensor, codes: CodeSpec) -> Tensor:
    """(B, T) -> (B, Q, *grid), the inverse of `as_sequence`."""
    return sequence.unflatten(1, (-1, codes.codebooks)).transpose(1, 2).unflatten(2, codes.grid)


def known_codes(
    spec: CodeSpec, known: Tensor | None, mask: Tensor | None, n: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The sequence (n, T) with its known codes, 0 elsewhere, and which of them are kept: bool (n, T).

    Raises UserError on one without the other, on another shape, and on codes that do not exist.
    """
    shape = (n, spec.codebooks, *spec.grid)
    if known is None or mask is None:
        if (known is None) != (mask is None):
            raise UserError("known codes need a mask that says which to keep, and a mask needs known codes")
        nothing = torch.zeros(n, spec.length, dtype=torch.int64, device=device)
        return nothing, nothing.bool()
    if known.shape != shape or mask.shape != shape:
        raise UserError(f"known codes and mask must be {shape}; got {tuple(known.shape)} and {tuple(mask.shape)}")
    if known.is_floating_point() or known.is_complex():
        raise UserError(f"known codes are whole numbers, not {known.dtype}")
    keep = as_sequence(mask.bool()).to(device)
    codes = as_sequence(known).to(device) * keep
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < spec.size:
        raise UserError(f"known codes must lie in [0, {spec.size})")
    return codes, keep


def only_first(keep: Tensor) -> bool:
    """Whether what is kept, bool (n, T), comes before all that is to be drawn."""
    return not bool((keep[:, 1:] & ~keep[:, :-1]).any())


def shown_labels(batch: Batch, classes: int, dropout: float) -> Tensor:
    """The class ids (B,) of a batch, a share `dropout` of them hidden, as each row's own number has it."""
    labels = class_ids(batch.labels, len(batch.x), classes, batch.x.device)
    if classes and dropout:
        hidden = uniform(batch.seed, batch.step, batch.rows, LABEL_STREAM) < dropout
        labels = labels.masked_fill(hidden.to(labels.device), classes)
    return labels


def class_ids(labels: Tensor | None, n: int, classes: int, device: torch.device) -> Tensor:
    """Class ids (n,) on a device, `classes` ("no class") where there are none.

    Raises UserError on another number of them and on ids that do not exist.
    """
    if labels is None or not classes:
        return torch.full((n,), classes, device=device)
    if labels.shape != (n,) or (n and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise UserError(f"condition must be {n} class ids in [0, {classes})")
    return labels.to(device)


def check_finite(said: Tensor) -> None:
    """Raises UserError where what a network says is not finite."""
    if said.device.type == "cpu":  # one that is not makes the sum so, which is there in a fifth of the time
        finite = said.sum(dtype=torch.float64).isfinite()
    else:
        finite = said.isfinite().all()
    if not bool(finite):
        raise UserError("the network's answers are not finite: its weights are broken; load an earlier state")


def grid_positions(codes: CodeSpec) -> Tensor:
    """The place (T, axes) of each code in reading order."""
    axes = torch.meshgrid(*(torch.arange(side) for side in codes.grid), indexing="ij")
    return torch.stack(axes, -1).flatten(0, -2).repeat_interleave(codes.codebooks, 0)
