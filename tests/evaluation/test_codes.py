from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.config import CodeSpec, SignalSpec
from smalti.evaluation.codes import CodeMeter, rate, rate_of_original, usage


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_counts_are_those_of_a_loop(codebooks: int, size: int, batch: int, seed: int) -> None:
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, size, (2 * batch, codebooks, 2, 3)))
    meter = CodeMeter(size, codebooks)
    meter.update(codes[:batch])
    meter.update(codes[batch:])
    for q, told in enumerate(meter.result()["codebooks"]):
        counted = Counter(codes[:, q].flatten().tolist())
        assert told["counts"] == [counted[k] for k in range(size)]
        assert told["tokens"] == 2 * batch * 6
        assert told["used"] == len(counted)
        assert told["usage"] == len(counted) / size
        assert meter.used(q).tolist() == told["used_codes"] == sorted(counted)
        assert meter.most_used(q).tolist() == sorted(counted, key=lambda k: (-counted[k], k))
        assert meter.most_used(q, 2).tolist() == meter.most_used(q).tolist()[:2]
        shares = [n / told["tokens"] for n in counted.values()]
        assert told["entropy"] == pytest.approx(-sum(p * np.log2(p) for p in shares), abs=1e-9)


def test_even_use_has_as_much_perplexity_as_codes() -> None:
    meter = CodeMeter(8)
    meter.update(torch.arange(16).remainder(8).view(4, 1, 2, 2))
    told = meter.result()
    assert told["perplexity"] == pytest.approx(8)
    assert told["entropy"] == pytest.approx(3)
    assert told["perplexity_share"] == pytest.approx(1)
    assert (told["tokens"], told["used"], told["usage"], told["size"]) == (16, 8, 1.0, 8)


def test_perplexity_by_hand() -> None:
    # shares 1/2, 1/4, 1/8, 1/8: 1.75 bits
    told = usage(torch.tensor([8, 4, 2, 2, 0, 0, 0, 0]))
    assert told["entropy"] == pytest.approx(1.75)
    assert told["perplexity"] == pytest.approx(2**1.75)
    assert told["perplexity_share"] == pytest.approx(2**1.75 / 8)


def test_bits_by_hand() -> None:
    spec, signal = CodeSpec(codebooks=3, grid=(7, 7), size=1000), SignalSpec(channels=3, shape=(28, 28))
    assert rate(spec, signal)["bits_a_picture"] == pytest.approx(3 * 49 * np.log2(1000))
    assert rate(spec, signal, 1)["bits_a_pixel"] == pytest.approx(np.log2(1000) / 16)
    assert rate_of_original(signal) == {"bits_a_picture_of_original": 18816, "bits_a_pixel_of_original": 24}


def test_codebooks_together() -> None:
    meter = CodeMeter(4, codebooks=2)
    meter.update(torch.tensor([[[0, 1], [3, 3]]]))  # (1, 2, 2): one even pair, one collapsed codebook
    told = json.loads(json.dumps(meter.result(), allow_nan=False))
    assert (told["tokens"], told["used"], told["usage"]) == (4, 3, 3 / 8)
    assert told["entropy"] == pytest.approx(0.5)
    assert [one["perplexity"] for one in told["codebooks"]] == pytest.approx([2, 1])


def test_nothing_counted() -> None:
    nothing = {"tokens": 0, "used": 0, "usage": 0.0, "entropy": 0.0, "perplexity": 0.0, "perplexity_share": 0.0}
    assert usage(torch.zeros(5)) == nothing
    assert CodeMeter(5).result()["perplexity"] == 0
    assert len(CodeMeter(5).most_used()) == 0


@pytest.mark.parametrize("codes", [torch.full((1, 1, 2), 4), torch.full((1, 1, 2), -1), torch.zeros(1, 2, 2).long()])
def test_codes_that_do_not_belong_are_errors(codes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="codes"):
        CodeMeter(4).update(codes)
