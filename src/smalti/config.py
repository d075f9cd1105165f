"""The base of every typed setting, and the specifications that travel with a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from smalti.errors import UserError, nearest


class Config(BaseModel):
    """A frozen group of settings: unknown keys are refused, JSON both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SignalSpec(Config):
    """What a signal is: enough to read files for a model and to write files from it.

    `shape` is the space only: (T,) for sound, (H, W) for images, (T, H, W) for video.
    `rate` is in Hz for sound, frames a second for video, None for images.
    Values are float in [-1, 1], laid out (B, channels, *shape).
    """

    kind: Literal["image", "sound", "video"] = "image"
    channels: int = Field(ge=1, le=4096)
    shape: tuple[PositiveInt, ...] = Field(min_length=1, max_length=3)
    rate: float | None = None


class CodeSpec(Config):
    """What one signal's codes are: int64 (B, codebooks, *grid), each in [0, size)."""

    codebooks: int = Field(ge=1)
    grid: tuple[PositiveInt, ...]
    size: int = Field(ge=1)

    @property
    def length(self) -> int:
        """How many codes one signal has."""
        count = self.codebooks
        for side in self.grid:
            count *= side
        return count


class LatentSpec(Config):
    """What one signal's continuous latent is: float (B, channels, *grid)."""

    channels: int = Field(ge=1)
    grid: tuple[PositiveInt, ...]


class TextSpec(Config):
    """What text is cut into: so many pieces, by the text tokenizer whose file has this SHA-256."""

    pieces: int = Field(ge=1)
    sha256: str


Reads = Literal["codes", "latents", "signals"]  # what a generator works on


class Examples(Config):
    """What a model is trained on: the signal, what a tokenizer makes of it if there is one, text, the labels' names."""

    signal: SignalSpec
    codes: CodeSpec | None = None
    latents: LatentSpec | None = None
    text: TextSpec | None = None
    labels: tuple[str, ...] = ()

    def shape(self, reads: Reads) -> tuple[int, ...]:
        """The shape of one example as a generator reads it, the channels or codebooks first."""
        if reads == "codes" and self.codes is not None:
            return (self.codes.codebooks, *self.codes.grid)
        if reads == "latents" and self.latents is not None:
            return (self.latents.channels, *self.latents.grid)
        return (self.signal.channels, *self.signal.shape)


def one_of(table: Mapping[str, type[Config]]) -> Any:
    """The type of a field that holds any one of the table's settings, told apart by their `kind`."""
    kinds = tuple(table.values())
    return kinds[0] if len(kinds) == 1 else Annotated[Union[kinds], Field(discriminator="kind")]  # noqa: UP007


Settings = TypeVar("Settings", bound=Config)


def checked(kind: type[Settings], tree: Mapping[str, Any], where: str) -> Settings:
    """Settings from their JSON tree. Raises UserError, in one line, that names the field."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_explained(error, tree)}") from error


def changed(
    settings: Settings, changes: Mapping[str, Any], kinds: Mapping[str, type[Config]] | None = None
) -> Settings:
    """A copy with dotted fields changed, each value given as itself or as text (JSON, or a plain word).

    Choosing another `kind`, from `kinds`, starts that group of settings from its own defaults. Raises UserError on an
    unknown field, with the nearest ones, and on a value that does not fit.
    """
    tree = settings.model_dump(mode="json")
    # kinds first, for the other fields of a group belong to the kind that was chosen
    for name, value in sorted(changes.items(), key=lambda change: not change[0].endswith("kind")):
        *path, last = name.replace("-", "_").split(".")
        group = tree
        for depth, key in enumerate(path):
            inner = group.get(key)
            if not isinstance(inner, dict):
                raise _unknown(name, path[:depth], key, group)
            group = inner
        if last not in group:
            raise _unknown(name, path, last, group)
        if last == "kind" and kinds and group["kind"] != value:
            if value not in kinds:
                raise UserError(f"--{name} {value}: no such kind; {nearest(str(value), kinds)}")
            group.clear()
            group.update(kinds[value]().model_dump(mode="json"))
        group[last] = _like(group[last], value)
    return checked(type(settings), tree, "these settings")


def _like(old: Any, value: Any) -> Any:
    """What a field that holds `old` takes for this value: text stays text, and one of several need not be a list."""
    if isinstance(old, str):
        return value
    new = _plain(value)
    return [new] if isinstance(old, list) and isinstance(new, int | float) else new


def _plain(value: Any) -> Any:
    """Text from a command line as the value it stands for."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        words = {"true": True, "false": False, "none": None}
        if value.lower() in words:
            return words[value.lower()]
        return [_plain(part) for part in value.split(",")] if "," in value else value


def _unknown(name: str, path: list[str], key: str, group: Mapping[str, Any]) -> UserError:
    prefix = ".".join([*path, ""])
    return UserError(f"unknown field --{name}; {nearest(prefix + key, [prefix + field for field in group])}")


def _explained(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """The first complaint, in one line."""
    first = error.errors()[0]
    fields: list[str] = []
    here: Any = tree
    for part in map(str, first["loc"]):
        # a union's kinds and classes stand in pydantic's path too; a user did not write those
        tag = isinstance(here, Mapping) and here.get("kind") == part
        if not tag and not part[:1].isupper() and "[" not in part:
            fields.append(part)
            here = here.get(part) if isinstance(here, Mapping) else None
    shown = ".".join(fields)
    if first["type"] == "extra_forbidden":
        return f"unknown field {shown}"
    if first["type"].startswith("union_tag"):
        return f"{shown}.kind is not one of {first.get('ctx', {}).get('expected_tags', '')}"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    tail = f" (given {given!r})" if not isinstance(given, dict | BaseModel) else ""
    return f"{shown}: {message}{tail}" if shown else message
