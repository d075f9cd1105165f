from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.sampling.drawn import drawn_run
from tests.tiny import cut

from smalti.checkpoint import sha256
from smalti.errors import UserError
from smalti.model import Tokenizer, load_tokenizer
from smalti.sampling import code_files
from smalti.sampling.code_files import CodeReader, CodeWriter, Encoded, smallest
from smalti.sampling.codes import decode_files
from smalti.tokenizers.bottlenecks.rvq import RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return load_tokenizer(drawn_run(tmp_path_factory.mktemp("vq"), VQConfig(codes=16, dim=4)), "cpu")


@pytest.fixture(scope="module")
def residual(tmp_path_factory) -> Tokenizer:
    return load_tokenizer(drawn_run(tmp_path_factory.mktemp("rvq"), RVQConfig(codes=16, dim=4, stages=3)), "cpu")


def some(count: int, seed: int = 0, most: int = 16) -> list[Encoded]:
    """Codes of pictures of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        height, width = torch.randint(1, 40, (2,), generator=generator).tolist()
        grid = (1, -(-height // 4), -(-width // 4))
        found.append(Encoded(f"{i % 3}/{i}.png", (height, width), torch.randint(0, most, grid, generator=generator)))
    return found


def write(tokenizer: Tokenizer, encoded: Sequence[Encoded], out: Path, shard_bytes: int = 1 << 20) -> Path:
    with CodeWriter(tokenizer, out, shard_bytes) as writer:
        for each in encoded:
            writer.add(each)
    return writer.place


def same(one: Sequence[Encoded], other: Sequence[Encoded]) -> bool:
    return [(each.name, each.size, each.codes.tolist()) for each in one] == [
        (each.name, each.size, each.codes.tolist()) for each in other
    ]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- there and back --------------------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 30), st.integers(0, 9), st.integers(1, 1500))
def test_what_was_written_is_read(tokenizer, tmp_path_factory, count, seed, shard_bytes):
    out, encoded = tmp_path_factory.mktemp("set") / "codes.safetensors", some(count, seed)
    place = write(tokenizer, encoded, out, shard_bytes)
    for way in {out, place}:
        reader = CodeReader(tokenizer, way)
        assert len(reader) == count
        assert same(list(reader), encoded)
        assert all(each.codes.dtype == torch.int64 for each in reader)
    total = sum(each.codes.numel() for each in encoded)
    assert (place == out) == (total <= shard_bytes or count == 1)
    if place == out:
        assert names(out.parent) == ["codes.safetensors"]
        return
    index = json.loads(place.read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"codes-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert names(out.parent) == sorted([*shards, "codes.safetensors.index.json"])
    assert index["metadata"]["total_size"] == total  # uint8
    for shard in shards:  # as any reader of such sets finds them
        tensors = load_file(out.parent / shard)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes or len(tensors) == 1
        assert set(tensors) == {key for key, file in index["weight_map"].items() if file == shard}
        with safe_open(out.parent / shard, "pt") as file:
            assert file.metadata()["model_sha256"] == tokenizer.sha256
            assert len(json.loads(file.metadata()["files"])) == len(tensors)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "int16"), (32768, "int16"), (32769, "int32"), (1 << 24, "int32")],
)
def test_the_smallest_type_that_holds_all_codes(size, dtype):
    assert str(smallest(size)) == f"torch.{dtype}"
    assert torch.tensor(size - 1).to(smallest(size)).item() == size - 1
    assert size - 1 > 255 or smallest(size) == torch.uint8


def test_many_small_pictures_make_several_files(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(code_files, "MOST_IN_SHARD", 4)
    encoded = some(10)
    place = write(tokenizer, encoded, tmp_path / "codes.safetensors")
    assert len(names(tmp_path)) == 4
    assert same(list(CodeReader(tokenizer, place)), encoded)


def test_names_that_cannot_be_written_everywhere(tokenizer, tmp_path):
    odd = ["bell\a.png", "two\nlines/x.png", "b\udcffad.png", "文" * 100 + "/" + "x" * 300, "plain ünïcode.png"]
    place = write(tokenizer, [Encoded(name, (4, 4), torch.zeros(1, 1, 1).long()) for name in odd], tmp_path / "c")
    found = [entry.name for entry in CodeReader(tokenizer, place).entries]
    assert found == ["bell_.png", "two_lines/x.png", "b_ad.png", "文" * 66 + "/" + "x" * 200, "plain ünïcode.png"]
    assert all(path.is_file() for path in decode_files(tokenizer, place, tmp_path / "out"))


def test_one_set_takes_the_place_of_another(tokenizer, tmp_path):
    out = tmp_path / "codes.safetensors"
    stranger = tmp_path / "codes-00001-of-00009.safetensors"  # somebody's weights, and not ours to remove
    save_file({"w": torch.zeros(3)}, stranger)
    sizes = {"many": (30, 100), "few": (20, 800), "one": (10, 1 << 20)}
    for before in sizes.values():
        for after in sizes.values():
            write(tokenizer, some(before[0]), out, before[1])
            place = write(tokenizer, some(after[0], seed=7), out, after[1])
            assert same(list(CodeReader(tokenizer, out)), some(after[0], seed=7))
            parts = set(json.loads(place.read_text())["weight_map"].values()) if place != out else set()
            assert set(names(tmp_path)) == {place.name, stranger.name, *parts}


@pytest.mark.parametrize("name", ["c.safetensors", "c.safetensors.index.json", "c-00001-of-00002.safetensors"])
def test_what_is_not_codes_is_not_overwritten(name, tokenizer, tmp_path):
    """Somebody's weights, say, or the picture that was to be encoded."""
    weights = tmp_path / name
    save_file({"w": torch.zeros(3)}, weights)
    before = weights.read_bytes()
    with pytest.raises(UserError, match=rf"{name} would be overwritten, and it holds no codes"):
        write(tokenizer, some(20), tmp_path / "c.safetensors", 400)
    assert names(tmp_path) == [name]
    assert weights.read_bytes() == before


# --- killed ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a kill does, for code in this process: nothing after it runs."""


@pytest.mark.parametrize(("before", "after"), [(300, 150), (150, 300), (1 << 20, 150), (150, 1 << 20)])
def test_a_kill_while_one_set_takes_the_place_of_another(before, after, tokenizer, tmp_path, monkeypatch):
    """At every single step: then one set or the other is there, whole, and the next writing goes well."""
    old, new = some(20), some(25, seed=3)
    seen = set()
    for moment in range(100):
        folder = tmp_path / str(moment)
        out = folder / "codes.safetensors"
        write(tokenizer, old, out, before)
        left = moment
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((os, "replace"), (Path, "unlink"), (code_files.shutil, "rmtree")):
                function = getattr(owner, name)

                def dying(*arguments, function=function, **options):
                    nonlocal left
                    if left == 0:
                        raise Killed
                    left -= 1
                    return function(*arguments, **options)

                patch.setattr(owner, name, dying)
            try:
                write(tokenizer, new, out, after)
                done = True
            except Killed:
                done = False
        found = list(CodeReader(tokenizer, out))
        assert same(found, old) or same(found, new)
        assert done <= same(found, new)
        seen.add(same(found, new))
        write(tokenizer, new, out, after)
        assert same(list(CodeReader(tokenizer, out)), new)
        assert not [name for name in names(folder) if name.startswith(".")]
        if done:
            break
    assert done
    assert seen == {True, False}


STOPS = """
import sys
from pathlib import Path
from smalti import cli
from smalti.sampling import codes
read, count = codes.read_signal, 0
def slow(*arguments):
    global count
    count += 1
    if count == 100:
        print("here", flush=True)
        sys.stdin.read()
    return read(*arguments)
codes.read_signal = slow
codes.BATCH = 10
sys.argv = ["smalti", *sys.argv[1:]]
cli.main()
"""


def test_a_process_killed_in_the_midst(tiny, tmp_path):
    out = tmp_path / "out" / "codes.safetensors"
    arguments = ["encode", str(tiny.tokenizer), str(tiny.data), "--out", str(out), "--device", "cpu"]
    arguments += ["--shard-size", str(400 / 2**20)]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=240)
    (left,) = out.parent.iterdir()  # under a name that nobody takes for codes
    assert left.name.startswith(".")
    assert len(list(left.iterdir())) >= 2  # shards were written as they filled
    model = load_tokenizer(tiny.tokenizer, "cpu")
    with pytest.raises(UserError, match="no file"):
        CodeReader(model, out)
    for target in (out, tmp_path / "fresh" / "codes.safetensors"):
        command = [sys.executable, "-m", "smalti.cli", *arguments]
        command[command.index(str(out))] = str(target)
        subprocess.run(command, check=True, timeout=120, capture_output=True)
    assert names(out.parent) == names(tmp_path / "fresh")
    assert len(names(out.parent)) > 4
    again, fresh = (list(CodeReader(model, folder / out.name)) for folder in (out.parent, tmp_path / "fresh"))
    assert len(again) == 120
    assert same(again, fresh)


# --- refused ---------------------------------------------------------------------------------------------------------


def forged(path: Path, tokenizer: Tokenizer, **changes: object) -> Path:
    """A file of codes of one 8 × 8 picture, with something in it changed."""
    codes = changes.pop("codes", torch.zeros(1, 2, 2, dtype=torch.uint8))
    listing = changes.pop("files", [{"name": changes.pop("name", "x.png"), "size": changes.pop("size", [8, 8])}])
    text = listing if isinstance(listing, str) else json.dumps(listing)
    metadata = {"smalti": "codes", "model_sha256": tokenizer.sha256, "files": text, **changes}
    save_file({"00000000": codes}, path, {key: value for key, value in metadata.items() if value is not None})
    return path


OUTSIDE = ["../x.png", "../../x", "a/../../x.png", "/tmp/x.png", "//tmp/x.png", "..", "a/..", "/", "", "."]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_the_folder(name, tokenizer, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = forged(tmp_path / "a" / "b" / "c.safetensors", tokenizer, name=name)
    with pytest.raises(UserError, match=r"refused: its name .* leads out of the folder"):
        decode_files(tokenizer, path, tmp_path / "a" / "b" / "out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [path]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "b.png", "/", "\\", "C:", "~", "\0", "é"]), max_size=5).map("/".join)
)
def test_no_name_writes_outside(tokenizer, tmp_path_factory, name):
    home = tmp_path_factory.mktemp("hostile")
    path = forged(home / "c.safetensors", tokenizer, name=name)
    try:
        places = decode_files(tokenizer, path, home / "deep" / "out")
    except UserError:
        places = []
    outside = [file for file in home.rglob("*") if file.is_file() and home / "deep" / "out" not in file.parents]
    assert outside == [path]
    assert all(place.is_file() for place in places)


ODD = {
    "a name of no kind": ({"name": 3}, "no proper name"),
    "a name that moves the cursor": ({"name": "\x1b[2J"}, "no proper name"),
    "a name too long": ({"name": "x" * 300}, "longer than"),
    "no size": ({"size": []}, "no proper size"),
    "a size of nothing": ({"size": [0, 8]}, "no proper size"),
    "a negative size": ({"size": [-8, 8]}, "no proper size"),
    "half a pixel": ({"size": [7.5, 8]}, "no proper size"),
    "a size of three": ({"size": [8, 8, 8]}, "no proper size"),
    "another size": ({"size": [800, 8]}, "do not fit its size"),
    "codes that are no numbers of codes": ({"codes": torch.zeros(1, 2, 2)}, "no proper codes"),
    "codes of an odd type": ({"codes": torch.zeros(1, 2, 2, dtype=torch.uint16)}, "no proper codes"),
    "codes without a grid": ({"codes": torch.zeros(4, dtype=torch.uint8)}, "no proper codes"),
    "no codes": ({"codes": torch.zeros(0, 2, 2, dtype=torch.uint8)}, "has 0 codebooks, and this model 1"),
    "too many codebooks": ({"codes": torch.zeros(2, 2, 2, dtype=torch.uint8)}, "has 2 codebooks, and this model 1"),
    "a code too many": ({"codes": torch.full((1, 2, 2), 16)}, r"codes in \[16, 16\], and this model's are 0 to 15"),
    "a code below": ({"codes": torch.full((1, 2, 2), -1)}, r"codes in \[-1, -1\]"),
    "no list": ({"files": None}, "damaged"),
    "a list of nothing": ({"files": []}, "names 0 pictures and holds the codes of 1"),
    "a list that is none": ({"files": "3"}, "damaged"),
    "a list of words": ({"files": ["x"]}, "damaged"),
    "no JSON": ({"files": "{"}, "damaged"),
    "JSON without end": ({"files": "[" * 100_000}, "damaged"),
    "no model": ({"model_sha256": None}, "made by another model"),
    "another model": ({"model_sha256": "0" * 64}, "made by another model"),
    "something else": ({"smalti": None}, "not a file of codes"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_file_that_is_not_as_it_should_be(case, tokenizer, tmp_path):
    changes, words = ODD[case]
    path = forged(tmp_path / "c.safetensors", tokenizer, **changes)
    with pytest.raises(UserError, match=words) as error:
        decode_files(tokenizer, path, tmp_path / "out")
    assert str(error.value).isprintable()  # one line
    assert not (tmp_path / "out").exists()


def test_the_forger_can_also_be_honest(tokenizer, residual, tmp_path):
    assert len(decode_files(tokenizer, forged(tmp_path / "c", tokenizer), tmp_path / "out")) == 1
    for books in (1, 2, 3):
        path = forged(tmp_path / "c", residual, codes=torch.zeros(books, 2, 2, dtype=torch.uint8))
        assert len(decode_files(residual, path, tmp_path / "out")) == 1
    path = forged(tmp_path / "c", residual, codes=torch.zeros(4, 2, 2, dtype=torch.uint8))
    with pytest.raises(UserError, match="has 4 codebooks, and this model 1 to 3"):
        CodeReader(residual, path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_file_cut_short(share, tokenizer, tmp_path):
    path = cut(write(tokenizer, some(30), tmp_path / "c.safetensors"), share)
    with pytest.raises(UserError, match="damaged or cut short"):
        CodeReader(tokenizer, path)


def test_what_is_no_file_of_codes(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no file"):
        CodeReader(tokenizer, tmp_path / "nothing")
    with pytest.raises(UserError, match="no file"):
        CodeReader(tokenizer, tmp_path / "nothing.safetensors.index.json")
    with pytest.raises(UserError, match="is a folder"):
        CodeReader(tokenizer, tmp_path)
    save_file({"w": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="not a file of codes"):
        CodeReader(tokenizer, tmp_path / "weights.safetensors")
    (tmp_path / "weights.safetensors.index.json").write_text('{"metadata": {"total_size": 3}, "weight_map": {}}')
    with pytest.raises(UserError, match="not a file of codes"):
        CodeReader(tokenizer, tmp_path / "weights.safetensors.index.json")


@pytest.fixture
def index(tokenizer, tmp_path) -> Path:
    return write(tokenizer, some(20), tmp_path / "set" / "codes.safetensors", 300)


def test_a_set_that_is_not_whole(tokenizer, index):
    shard = index.with_name(sorted(json.loads(index.read_text())["metadata"]["sha256"])[1])
    content = shard.read_bytes()
    with pytest.raises(UserError, match="is one of several parts"):
        CodeReader(tokenizer, shard)
    cut(shard, 0.9)
    with pytest.raises(UserError, match=f"{shard.name} is damaged or cut short: its checksum"):
        CodeReader(tokenizer, index)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        CodeReader(tokenizer, index)
    shard.write_bytes(content)
    assert len(CodeReader(tokenizer, index)) == 20
    index.unlink()
    with pytest.raises(UserError, match="no file"):
        CodeReader(tokenizer, index.with_name("codes.safetensors"))


def test_one_bit_of_a_set(tokenizer, index):
    for shard in index.parent.glob("*.safetensors"):
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        with pytest.raises(UserError, match="checksum"):
            CodeReader(tokenizer, index)
        content[-1] ^= 1
        shard.write_bytes(content)


def test_a_shard_of_another_set(tokenizer, index, tmp_path):
    other = write(tokenizer, some(20, seed=1), tmp_path / "other" / "codes.safetensors", 300)
    name = "codes-00001-of-"
    (mine,), (theirs,) = (list(each.parent.glob(f"{name}*")) for each in (index, other))
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(UserError, match="checksum"):
        CodeReader(tokenizer, index)


def test_an_index_that_is_not_as_it_should_be(tokenizer, index):
    text = index.read_text()
    told = json.loads(text)
    fewer = {"metadata": told["metadata"], "weight_map": dict(list(told["weight_map"].items())[1:])}
    for damaged in (text[:-10], "", "[]", "3", "{}", "[" * 100_000, json.dumps(fewer)):
        index.write_text(damaged)
        with pytest.raises(UserError, match=r"index\.json is damaged"):
            CodeReader(tokenizer, index)
    index.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        CodeReader(tokenizer, index)
    told["metadata"]["model_sha256"] = "0" * 64
    index.write_text(json.dumps(told))
    with pytest.raises(UserError, match="made by another model"):
        CodeReader(tokenizer, index)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b", ""])
def test_an_index_that_points_elsewhere(name, tokenizer, index):
    (index.parent.parent / "secret.safetensors").write_text("secret")
    told = json.loads(index.read_text())
    told["metadata"]["sha256"] = {name: sha256(index.parent.parent / "secret.safetensors")}
    index.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        CodeReader(tokenizer, index)


def test_a_half_done_replacement_that_somebody_handed_us(tokenizer, tmp_path):
    """What finishes a replacement touches nothing but files that belong to that name."""
    out = write(tokenizer, some(3), tmp_path / "in" / "codes.safetensors")
    precious = tmp_path / "precious"
    precious.write_text("dear")
    hidden = out.with_name(".codes.safetensors.new")
    hidden.mkdir()
    (hidden / "evil").write_text("evil")
    for listed in (["../precious", "../../precious", str(precious), "evil"], 3, {"evil": 1}, None):
        (hidden / ".complete").write_text(json.dumps(listed))
        try:
            CodeReader(tokenizer, out)
        except UserError:
            write(tokenizer, some(3), out)
        assert precious.read_text() == "dear"
        assert not (out.parent / "evil").exists()
        hidden.mkdir(exist_ok=True)
