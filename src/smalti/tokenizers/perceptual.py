"""How unlike two signals are in the eyes of a network, rather than sample by sample (Johnson et al. 2016, 1603.08155).

The network is the critic, which comes with adversarial training, or one's own, as a file of `torch.export`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smalti.device import full_precision
from smalti.errors import UserError

DIFFERENT = 0.05  # between two answers that should be one: above what bf16 rounds away


def feature_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Activations (B, …) of as many layers each -> fp32 (B,): |ours - theirs| / |theirs|, the mean over the layers.

    Both norms are sums of absolute values over the layer of one signal, so that neither the scale of a layer nor the
    other signals of a batch matter (Défossez et al. 2022, arXiv 2210.13438, equation 2).
    """
    with full_precision(ours[0].device):
        parts = []
        for one, other in zip(ours, theirs, strict=True):
            size = other.float().flatten(1).abs().sum(1)
            parts.append((one.float() - other.float()).flatten(1).abs().sum(1) / size.clamp_min(1e-6))
        return torch.stack(parts).mean(0)


class FrozenNetwork:
    """Somebody's own network, from a file that `torch.export.save` wrote: x (B, C, *space) -> its features.

    x lies in [-1, 1]. The program gives one tensor or a list of tensors, each with one row a signal:

        program = torch.export.export(network.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, "eye.pt2")

    It is no module on purpose: no `.train()` of a parent reaches it, no optimizer holds its weights, no state keeps
    them. The program stays in the mode it was exported in; one that takes chances, or looks across the batch, is
    refused. The file is read at its first use, so that a trained model needs it no longer.

    A .pt2 file is code. `torch.export.load` unpickles some of its parts without restriction, evaluates its guards and
    may load compiled code; nothing a caller does can prevent that. Name only files you would run.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._program: Callable[[Tensor], Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenNetwork:
        return self  # nothing in it ever changes

    def features(self, x: Tensor) -> list[Tensor]:
        """Raises UserError when the file is no such program, or not for signals of this shape."""
        if self._program is None:
            self._program = self._checked(_loaded(self.path, x.device), x)
        return self._answers(self._program, x)

    def _checked(self, program: Callable[[Tensor], Any], x: Tensor) -> Callable[[Tensor], Any]:
        """The program, once it is known to see every signal by itself and always alike."""
        one = x[:1].detach().requires_grad_()
        with torch.enable_grad():
            alone, beside = self._answers(program, one), self._answers(program, torch.cat([one, -one]))
        if not all(each.requires_grad for each in alone):
            raise UserError(f"{self.path} passes no gradient to its input; export it outside torch.no_grad()")
        if float(feature_distance([each[:1] for each in beside], alone).detach()) > DIFFERENT:
            raise UserError(
                f"{self.path} takes chances, or sees a signal otherwise beside others; export it after .eval()"
            )
        return program

    def _answers(self, program: Callable[[Tensor], Any], x: Tensor) -> list[Tensor]:
        try:
            given = program(x)
        except (RuntimeError, TypeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.path} does not take signals of shape {tuple(x.shape)}: {reason}") from error
        answers = [given] if isinstance(given, Tensor) else given
        fits = isinstance(answers, list | tuple) and all(
            isinstance(each, Tensor) and each.is_floating_point() and each.ndim and len(each) == len(x)
            for each in answers
        )
        if not fits or not answers:
            raise UserError(f"{self.path} must give a tensor or a list of tensors, each with one row a signal")
        return list(answers)


def _loaded(path: Path, device: torch.device) -> Callable[[Tensor], Any]:
    from torch.export.passes import move_to_device_pass

    if not path.is_file():
        raise UserError(f"--paradigm.perceptual {path}: there is no such file; critic and none are the other choices")
    if not _is_program(path):
        raise UserError(f"{path} is no program of torch.export; write it with torch.export.save(program, 'NAME.pt2')")
    try:
        program = move_to_device_pass(torch.export.load(path), device).module()
    except Exception as error:  # whatever a damaged file makes of it
        raise UserError(f"{path} cannot be read as a program of torch.export ({type(error).__name__})") from error
    return program.requires_grad_(False)


def _is_program(path: Path) -> bool:
    """Asked before torch is, which meets another file with pages of warnings."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).match("models/*.json") for name in archive.namelist())
