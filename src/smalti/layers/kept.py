"""Something made out of a network's weights, such as another layout of them, kept until they change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """Holds the last that was made. A copy of a model makes its own anew."""

    def __init__(self) -> None:
        self._state: tuple[Hashable, ...] | None = None
        self._made: Made | None = None

    def of(self, networks: Sequence[nn.Module], make: Callable[[], Made], *also: Hashable) -> Made:
        """What `make` gives, from before if neither the networks' weights nor `also` are different now."""
        weights = [weight for network in networks for weight in network.parameters()]
        state = (
            *also,
            torch.is_inference_mode_enabled(),
            *((weight.data_ptr(), _version(weight)) for weight in weights),
        )
        if self._made is None or self._state != state:
            self._made, self._state = make(), state
        return self._made

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept[Made]:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept[Made]], tuple[()]]:
        return Kept, ()


def _version(weight: Tensor) -> int:
    """How often a tensor was written to; those made in inference mode do not say, and are read only."""
    return 0 if weight.is_inference() else weight._version
