from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from smalti import device as devices
from smalti.device import (
    autocast,
    decoding_dtype,
    full_precision,
    multiplies_bf16,
    peak_memory,
    pick_device,
    processor_name,
    product_dtype,
    weights_ready,
)
from smalti.errors import UserError

CPU = torch.device("cpu")


def test_names_of_devices():
    assert pick_device("cpu") == CPU
    assert isinstance(pick_device("auto"), torch.device)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(UserError, match="not on this machine; use cpu or auto"):
        pick_device(name)


def test_precision_is_bf16_where_the_hardware_has_it(monkeypatch):
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "multiplies_bf16", lambda _, has=has: has)
        assert product_dtype(CPU) == expected
        assert product_dtype(CPU, "bf16") == torch.bfloat16
        assert product_dtype(CPU, "fp32") == torch.float32


def test_an_unknown_kind_of_device_multiplies_no_bf16():
    assert multiplies_bf16("mps") is False


def test_autocast_touches_products_alone(generator):
    x = torch.randn(4, 4, generator=generator)
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype == torch.bfloat16
        assert (x + x).dtype == torch.float32
        with full_precision(CPU):
            assert torch.equal(x @ x, torch.mm(x, x))
            assert (x @ x).dtype == torch.float32
    with autocast(CPU, "fp32"):
        assert (x @ x).dtype == torch.float32


def test_a_handful_of_rows_leaves_tiles_empty_and_is_decoded_in_fp32(monkeypatch):
    monkeypatch.setattr(devices, "multiplies_bf16", lambda _: True)
    for tiles, few in ((True, torch.float32), (False, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles, raising=False)
        assert decoding_dtype(CPU, 1) == few
        assert decoding_dtype(CPU, 64) == torch.bfloat16


def test_what_the_machine_says_of_itself():
    assert processor_name()
    before = peak_memory(CPU)
    held = torch.ones(50 * 2**18)  # 50 MiB
    assert 0.05 < before <= peak_memory(CPU) < 1000
    assert len(held)


@pytest.mark.parametrize(
    ("tiles", "pairs", "processor", "expected"),
    [
        (True, True, "Intel(R) Xeon(R) Processor", True),
        (False, True, "Intel(R) Xeon(R) Processor", False),
        (False, True, "AMD EPYC 9B45", True),
        (False, False, "AMD EPYC 7B13", False),
    ],
)
def test_bf16_where_it_is_quicker(tiles, pairs, processor, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: pairs, raising=False)
    monkeypatch.setattr(devices, "processor_name", lambda: processor)
    multiplies_bf16.cache_clear()
    try:
        assert multiplies_bf16("cpu") is expected
    finally:
        multiplies_bf16.cache_clear()


def test_numbers_too_small_to_matter_are_nothing_on_every_thread():
    asked = (
        "import torch; torch.set_num_threads(2); from smalti.device import pick_device; pick_device('cpu');"
        "print(int((torch.full((1 << 20,), 1e-30) * 1e-10).count_nonzero()))"
    )
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "0"


def test_weights_are_ready_within_the_block_and_as_they_were_after_it():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    before = network[0].weight
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = network[0](torch.ones(1, 4))
        with weights_ready(network):
            assert network[0].weight.dtype == torch.bfloat16
            assert network[1].weight.dtype == torch.float32
            assert torch.equal(network[0](torch.ones(1, 4)), plain)
        assert network[0].weight is before
    with weights_ready(network):
        assert network[0].weight is before
