"""The optimizers and their learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from smalti.recipe import TrainingConfig

LEAST_SIDE = 32  # a matrix narrower than this has too few directions for Muon to balance


class Optimizer:
    """AdamW (Loshchilov & Hutter 2017), or with `muon_lr` Muon (Jordan et al. 2024) on hidden matrices and AdamW on the
    rest: embeddings, vectors, and the narrow first and last layers.

    Muon makes all directions of an update equally large, so that rare ones are learnt as fast as common ones. A
    convolution's kernel is the matrix (out, in * kernel).
    """

    def __init__(self, player: nn.Module, config: TrainingConfig) -> None:
        self.config = config
        self.kernels: list[tuple[nn.Parameter, nn.Parameter]] = []
        hidden = _hidden_matrices(player) if config.muon_lr is not None else []
        chosen = {id(p) for p in hidden}
        rest = [p for p in player.parameters() if p.requires_grad and id(p) not in chosen]
        heavy, light = [p for p in rest if p.ndim >= 2], [p for p in rest if p.ndim < 2]
        groups = [{"params": heavy, "weight_decay": config.weight_decay}, {"params": light, "weight_decay": 0.0}]
        self.parts: dict[str, tuple[torch.optim.Optimizer, float]] = {}
        if rest:
            filled = [group for group in groups if group["params"]]
            adamw = torch.optim.AdamW(filled, lr=config.lr, betas=config.betas, fused=True)
            self.parts["adamw"] = (adamw, config.lr)
        if hidden and config.muon_lr is not None:
            # Muon takes matrices only, so a kernel is given as a view that shares its memory
            self.kernels = [(nn.Parameter(p.data.view(len(p), -1)), p) for p in hidden]
            muon = torch.optim.Muon(
                [view for view, _ in self.kernels],
                lr=config.muon_lr,
                momentum=0.95,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self.parts["muon"] = (muon, config.muon_lr)

    def step(self, share: float) -> None:
        """Take one step at this share of the full learning rates, and forget the gradient."""
        for view, kernel in self.kernels:
            view.grad = None if kernel.grad is None else kernel.grad.reshape(len(kernel), -1)
            kernel.grad = None
        for optimizer, rate in self.parts.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, (optimizer, _) in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, (optimizer, _) in self.parts.items():
            optimizer.load_state_dict(state[name])


def _hidden_matrices(player: nn.Module) -> list[nn.Parameter]:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    weights = [module.weight for module in player.modules() if isinstance(module, kinds)]
    return [
        w
        for w in weights
        if isinstance(w, nn.Parameter) and w.requires_grad and min(len(w), w[0].numel()) >= LEAST_SIDE
    ]


def rate_share(step: int, config: TrainingConfig) -> float:
    """The share of the full learning rate at a step: linear to 1 over the warm-up, then half a cosine to `lr_end`."""
    warmup = min(config.warmup, config.steps)
    if step < warmup:
        return (step + 1) / warmup
    along = (step - warmup) / max(1, config.steps - warmup)
    return config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))
