"""smalti: cut any signal into tokens, and train the transformers that lay them again.

    import smalti
    run = smalti.train("fashion", out="runs/fashion")
    model = smalti.load("runs/fashion")
    pictures = model.sample(8, condition="Sneaker", seed=0)  # (8, 1, 28, 28) in [-1, 1]

Importing smalti imports nothing heavy; torch comes with the first call that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smalti.errors import UserError
    from smalti.model import load
    from smalti.recipes import recipe
    from smalti.runs import train

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "load", "recipe", "train"]

_HOMES = {
    "UserError": "smalti.errors",
    "load": "smalti.model",
    "recipe": "smalti.recipes",
    "train": "smalti.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smalti' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
