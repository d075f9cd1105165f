from __future__ import annotations

import json
from itertools import islice

import pytest
import torch

from smalti.data import pixels as pixels_room
from smalti.data.example import MemorySource
from smalti.data.image import to_signal
from smalti.data.loader import Loader, sweep
from smalti.data.order import indices
from smalti.data.sources import DataConfig, open_source
from smalti.errors import UserError

CONFIG = DataConfig(flip=True, shift=2)


@pytest.fixture
def source() -> MemorySource:
    pixels = torch.randint(0, 256, (50, 3, 6, 6), generator=torch.manual_seed(0), dtype=torch.uint8)
    return MemorySource("some", pixels, torch.arange(50) % 7, tuple("abcdefg"))


@pytest.fixture
def folder(tmp_path, paint, cut_short):
    for i in range(41):
        paint(tmp_path / "pictures" / f"{i:02}.png", i, (40, 40))
    cut_short(tmp_path / "pictures" / "05.png")
    rows = [{"file_name": f"{i:02}.png", "label": i % 3, "text": [f"one {i}", f"two {i}"]} for i in range(41)]
    (tmp_path / "pictures" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return open_source(DataConfig(source=str(tmp_path / "pictures"), validation=0))


def first(loader: Loader, count: int) -> list:
    with loader:
        return list(islice(loader, count))


def same(a, b) -> bool:
    return (a.step, a.texts) == (b.step, b.texts) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("rows", "indices", "x", "labels")
    )


def test_a_batch_is_the_order_applied_to_the_source(source):
    for batch in first(Loader(source, CONFIG, 8, seed=3), 10):
        assert torch.equal(batch.indices, indices(50, 8, batch.step, 3))
        assert torch.equal(batch.x, to_signal(source.pixels()[batch.indices]))
        assert torch.equal(batch.labels, batch.indices % 7)
        assert (batch.rows.tolist(), batch.texts, batch.seed) == (list(range(8)), None, 3)
        assert (batch.x.dtype, batch.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_starting_later_continues_exactly(folder, monkeypatch, kept):
    monkeypatch.setattr(pixels_room, "KEPT_DECODED", kept)
    config = CONFIG.model_copy(update={"workers": 0})
    whole = first(Loader(folder, config, 16, seed=1, augment=True), 9)
    later = first(Loader(folder, config, 16, seed=1, augment=True, start=5), 4)
    assert all(same(a, b) for a, b in zip(whole[5:], later, strict=True))
    assert [batch.step for batch in whole] == list(range(9))


def test_streaming_by_workers_is_the_same_as_decoding_first(folder, monkeypatch):
    held = first(Loader(folder, CONFIG, 12, seed=1, augment=True), 8)
    monkeypatch.setattr(pixels_room, "KEPT_DECODED", 0)
    loader = Loader(folder, CONFIG.model_copy(update={"workers": 2}), 12, seed=1, augment=True)
    streamed = first(loader, 8)
    assert all(same(a, b) for a, b in zip(held, streamed, strict=True))
    assert [name for name, _ in loader.broken] == ["05.png"]


def test_two_ranks_together_are_one(source):
    one = first(Loader(source, CONFIG, 8, seed=0, augment=True), 6)
    two = [first(Loader(source, CONFIG, 8, seed=0, rank=rank, ranks=2, augment=True), 6) for rank in (0, 1)]
    for whole, left, right in zip(one, *two, strict=True):
        for name in ("rows", "indices", "x", "labels"):
            assert torch.equal(torch.cat([getattr(left, name), getattr(right, name)]), getattr(whole, name))
    with pytest.raises(UserError, match="8 cannot be shared equally by 3"):
        Loader(source, CONFIG, 8, seed=0, ranks=3)


def test_augmentation_happens_only_where_asked(source):
    plain = first(Loader(source, CONFIG, 50, seed=0), 1)[0]
    changed = first(Loader(source, CONFIG, 50, seed=0, augment=True), 1)[0]
    assert torch.equal(plain.indices, changed.indices)
    assert not torch.equal(plain.x, changed.x)


def test_labels_and_texts_follow_the_picture_that_is_used(folder):
    seen = set()
    for batch in first(Loader(folder, CONFIG, 41, seed=0), 6):
        assert 5 not in batch.indices
        for i, label, text in zip(batch.indices.tolist(), batch.labels.tolist(), batch.texts, strict=True):
            assert label == i % 3
            assert text in (f"one {i}", f"two {i}")
            seen.add(text)
    assert len(seen) > 70  # both texts of most pictures


def test_a_sweep_shows_every_readable_picture_once_as_it_is(folder):
    batches = list(sweep(folder, CONFIG, 16))
    assert [len(batch.x) for batch in batches] == [15, 16, 9]
    assert torch.cat([batch.indices for batch in batches]).tolist() == [i for i in range(41) if i != 5]
    for batch in batches:
        for i, x in zip(batch.indices.tolist(), batch.x, strict=True):
            assert torch.equal(x, to_signal(folder.item(i).pixels))
    assert batches[0].texts[0] == "one 0"


def test_ranks_share_a_sweep(source):
    parts = [torch.cat([b.indices for b in sweep(source, CONFIG, 8, rank, 4)]) for rank in range(4)]
    assert torch.cat(parts).sort().values.tolist() == list(range(50))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(list(sweep(source, CONFIG, 8, 3, 100))) == 7
