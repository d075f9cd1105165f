"""What all tests share: one thread, no deadlines, a cache folder of their own, and pictures a few pixels large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import settings

settings.register_profile("smalti", deadline=None)  # a busy machine is no failure
settings.load_profile("smalti")
torch.set_num_threads(1)  # tests run beside each other; two threads in each would only wait for one another


@pytest.fixture(autouse=True, scope="session")
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALTI_CACHE", str(tmp_path_factory.mktemp("smalti-cache")))
        yield


@pytest.fixture(autouse=True)
def _small_numbers_are_back() -> Iterator[None]:
    """What a training told the processor about denormal numbers ends with the test: hypothesis draws such numbers."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _decoding_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 while sampling, whatever the hardware likes best: only then are two ways to one sample equal."""
    monkeypatch.setattr("smalti.paradigms.autoregressive.decoding_dtype", lambda *_: torch.float32)
    for paradigm in ("discrete_diffusion", "diffusion"):
        monkeypatch.setattr(f"smalti.paradigms.{paradigm}.autocast", lambda *_: nullcontext())
    monkeypatch.setattr("smalti.layers.sweep.product_dtype", lambda device: torch.float32)


@pytest.fixture
def generator() -> torch.Generator:
    """Randomness that is the same in every run."""
    return torch.Generator().manual_seed(0)
