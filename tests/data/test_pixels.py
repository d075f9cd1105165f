from __future__ import annotations

import os

import pytest
import torch

from smalti.data import pixels as room
from smalti.data.example import MemorySource
from smalti.data.pixels import HeldPixels, StreamedPixels, open_pixels
from smalti.data.sources import DataConfig, open_source
from smalti.errors import UserError


def opened(folder, **settings):
    return open_source(DataConfig(source=str(folder), validation=0, **settings))


def expected(source, i: int) -> torch.Tensor:
    return source.item({5: 7, 6: 7}.get(i, i)).pixels


@pytest.mark.parametrize("kind", [HeldPixels, StreamedPixels])
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_are_replaced_named_and_counted(damaged, monkeypatch, kind, workers):
    if kind is StreamedPixels:
        monkeypatch.setattr(room, "KEPT_DECODED", 0)
    source = opened(damaged)
    pixels = open_pixels(source, workers)
    assert type(pixels) is kind
    requests = [torch.tensor(each) for each in ([6, 0, 5], [40, 5], [6], [1, 2, 3, 4])]
    try:
        answers = list(pixels.stream(requests))
    finally:
        pixels.close()
    assert len(answers) == 4
    for wanted, (taken, found) in zip(requests, answers, strict=True):
        assert taken.tolist() == [{5: 7, 6: 7}.get(i, i) for i in wanted.tolist()]
        assert taken.dtype == torch.int64
        for i, picture in zip(wanted.tolist(), found, strict=True):
            assert torch.equal(picture, expected(source, i))
    assert [name for name, _ in pixels.broken_names] == ["05.png", "06.png"]
    assert all(reason for _, reason in pixels.broken_names)


def test_the_replacement_does_not_depend_on_what_was_read_before(damaged, monkeypatch):
    monkeypatch.setattr(room, "KEPT_DECODED", 0)
    for first in ([5], [6], [40, 0]):
        pixels = open_pixels(opened(damaged), 0)
        *_, (taken, _) = pixels.stream([torch.tensor(first), torch.tensor([5])])
        assert taken.tolist() == [7]


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_more_than_a_twentieth_broken_stops(damaged, cut_short, monkeypatch, kept):
    monkeypatch.setattr(room, "KEPT_DECODED", kept)
    cut_short(damaged / "30.png")
    with pytest.raises(UserError, match=r"3 of 41 .*05\.png .*06\.png .*30\.png"):
        list(open_pixels(opened(damaged), 0).stream([torch.arange(41)]))


def test_memory_is_used_as_it_is():
    held = torch.arange(24, dtype=torch.uint8).reshape(2, 1, 3, 4)
    pixels = open_pixels(MemorySource("some", held))
    ((taken, found),) = pixels.stream([torch.tensor([1, 0, 1])])
    assert taken.tolist() == [1, 0, 1]
    assert torch.equal(found, held[[1, 0, 1]])


def test_small_folders_are_read_without_other_processes(damaged, monkeypatch):
    counts: list[int] = []

    def decode(source, workers):
        counts.append(workers)
        return torch.zeros(len(source), 3, 40, 40), {}

    monkeypatch.setattr(room, "decode", decode)
    open_pixels(opened(damaged))
    monkeypatch.setattr(room, "FEW", 10)
    open_pixels(opened(damaged))
    assert counts == [0, min(8, os.cpu_count() or 1)]
