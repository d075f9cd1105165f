from __future__ import annotations

import pytest
import torch

from smalti.layers.cache import Cache


def test_what_was_stored_comes_back_in_order(generator):
    cache = Cache(2, 3, 2, 5, 4, torch.device("cpu"), torch.float32)
    keys, values = torch.randn(2, 2, 3, 2, 5, 4, generator=generator)
    for start, end in ((0, 2), (2, 3), (3, 5)):
        for layer in range(2):
            seen = cache.extend(layer, keys[layer, :, :, start:end], values[layer, :, :, start:end])
            assert torch.equal(seen[0], keys[layer, :, :, :end])
            assert torch.equal(seen[1], values[layer, :, :, :end])
        cache.filled = end


def test_more_than_it_holds_is_refused():
    cache = Cache(1, 1, 1, 3, 2, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="holds 3 tokens, 4"):
        cache.extend(0, torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
