from __future__ import annotations

import io
import re
import struct
import tarfile

import numpy as np
import pytest

from smalti.data.fetch import NodeRegistry, Publisher
from smalti.data.named import NAMED_SETS, read_cifar, read_idx, read_mnist_csv
from smalti.errors import UserError


def idx(array: np.ndarray) -> bytes:
    magic = {1: 0x801, 3: 0x803}[array.ndim]
    return struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()


def random(*shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape, dtype=np.uint8)


def cifar(**changed: bytes | None) -> bytes:
    records = {
        f"data_batch_{i}": np.concatenate([np.full((4, 1), i, np.uint8), random(4, 3072)], 1) for i in (1, 2, 3, 4, 5)
    }
    files = {f"{name}.bin": array.tobytes() for name, array in records.items()}
    files["test_batch.bin"] = bytes([9]) + bytes(range(256)) * 12
    files |= {name.replace("__", "."): content for name, content in changed.items()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            if content is not None:
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize("shape", [(7,), (3, 28, 28), (0, 28, 28)])
def test_idx_round_trip(shape):
    assert np.array_equal(read_idx(idx(random(*shape)), "a"), random(*shape))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an IDX file"),
        (struct.pack("<I", 0x803) + bytes(100), "0x3080000"),  # little-endian
        (struct.pack(">I", 0x803) + bytes(5), "header"),
        (idx(random(3, 4, 4))[:-1], "promises 48 bytes, 47 follow"),
        (idx(random(5)) + b"x", "promises 5 bytes, 6 follow"),
        (struct.pack(">IIII", 0x803, 2**31, 2**31, 2**31), "promises"),
    ],
)
def test_a_wrong_idx_file_says_what_is_wrong(content, says):
    with pytest.raises(UserError, match=f"labels.gz.*{says}"):
        read_idx(content, "labels.gz")


def test_idx_sets_must_belong_together():
    named = NAMED_SETS["fashion-mnist"]
    contents = dict(
        zip(
            named.files,
            [idx(random(n, 28, 28)) if i % 2 == 0 else idx(random(n, high=10)) for i, n in enumerate([6, 6, 2, 2])],
            strict=True,
        )
    )
    splits = named.read(contents)
    assert splits["train"][0].shape == (6, 1, 28, 28)
    assert splits["test"][1].shape == (2,)
    assert splits["test"][1].dtype == np.int64
    contents["t10k-labels-idx1-ubyte.gz"] = idx(random(3, high=10))
    with pytest.raises(UserError, match="do not belong together"):
        named.read(contents)


def test_cifar_is_read_in_its_true_layout():
    splits = read_cifar(cifar(), "c.tar.gz")
    pixels, labels = splits["train"]
    assert labels.tolist() == [label for label in (1, 2, 3, 4, 5) for _ in range(4)]
    assert np.array_equal(pixels[0, 0, 0], random(4, 3072)[0, :32])  # red, top row
    assert np.array_equal(pixels[0, 2, 31], random(4, 3072)[0, -32:])  # blue, bottom row
    test_pixels, test_labels = splits["test"]
    assert test_labels.tolist() == [9]
    assert test_pixels.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (b"no tar", "not a readable archive"),
        (cifar()[:3000], "not a readable archive"),
        (cifar(test_batch__bin=None), "must hold"),
        (cifar(test_batch__bin=bytes(3072)), "not a multiple"),
        (cifar(test_batch__bin=bytes([10]) + bytes(3072)), "label above 9"),
    ],
)
def test_a_wrong_cifar_archive_says_what_is_wrong(archive, says):
    with pytest.raises(UserError, match=says):
        read_cifar(archive, "c.tar.gz")


def test_mnist_rows():
    rows = np.concatenate([random(4, 784), np.array([[0], [3], [3], [9]])], 1)
    text = "\n".join(",".join(map(str, row)) for row in rows).encode()
    pixels, labels = read_mnist_csv(text, "m.csv")["train"]
    assert np.array_equal(pixels.reshape(4, 784), rows[:, :784])
    assert labels.tolist() == [0, 3, 3, 9]
    for wrong in (text.replace(b",9", b",11"), b"1,2,3", b"a" + text, b"256" + text[text.index(b",") :]):
        with pytest.raises(UserError, match=r"m\.csv"):
            read_mnist_csv(wrong, "m.csv")


@pytest.mark.parametrize("name", NAMED_SETS)
def test_every_set_states_checksums_ways_labels_and_licence(name):
    named = NAMED_SETS[name]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in named.files.values())
    assert len(set(named.files.values())) == len(named.files)
    made = ("emoji-mix", "emoji-things", "emoji-drawings", "emoji-scenes", "emoji-scenes-drawings")
    labels = {"emoji": 9, "emoji-pairs": 8, **dict.fromkeys(made, 0)}.get(name, 10)
    assert len(named.labels) == len(set(named.labels)) == labels
    assert NAMED_SETS[named.of or name].files == named.files
    assert named.licence
    assert named.attribution
    publishers = [way for way in named.ways if isinstance(way, Publisher | NodeRegistry)]
    assert publishers
    for way in publishers:
        if isinstance(way, NodeRegistry):
            assert way.base == "https://registry.npmjs.org/"
            assert set(way.archives) == set(named.files)
            assert all(re.fullmatch("[0-9a-f]{128}", each.sha512) for each in way.archives.values())
            continue
        assert way.base.startswith("https://")
        assert way.base.endswith("/")
        assert all(re.fullmatch("(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})", each) for each in way.hashes.values())
        assert set(way.hashes) <= set(named.files)
