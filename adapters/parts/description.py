"""The file of a record from parts: where things lie, by which hash they are known, how they fit together."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clp_plugin.errors import RecordError
from clp_plugin.files.atomic import write_json_atomically
from clp_plugin.files.described import read_described
from clp_plugin.files.hashing import sha256

SCHEMA_VERSION = 1
DESCRIPTION = "parts.json"
TriggerKind = Literal["patch", "blend", "addition", "triggered"]


@dataclass(frozen=True)
class Part:
    """A file or folder that a record is made of.

    Attributes:
        path: Absolute, or relative to the record's folder for what was copied into it.
        sha256: Hash of what is used of it.
    """

    path: str
    sha256: str

    def below(self, folder: Path) -> Path:
        """The path of the file, for a record in ``folder``."""
        return folder / self.path


@dataclass(frozen=True)
class TriggerParts:
    """The parts of a trigger, and how it is put on.

    Attributes:
        kind: ``"patch"``, ``"blend"``, ``"addition"``, or ``"triggered"`` for images that carry it already.
        picture: The pattern, or the triggered images.
        mask: Picture of how much of the pattern covers, or None.
        at: Name of a corner, or ``"X,Y"``; None for a pattern as large as the images.
        weight: Share of the pattern in a blend.
    """

    kind: TriggerKind
    picture: Part
    mask: Part | None = None
    at: str | None = None
    weight: float | None = None


@dataclass(frozen=True)
class NetworkParts:
    """The parts that the attacked network is made of.

    Attributes:
        checkpoint: The file of weights.
        architecture: ``torchvision:NAME``, ``timm:NAME``, ``builtin:NAME`` or the name of a callable in ``code``; None for a
            whole pickled network.
        code: The user's own Python file that builds it, or None.
        options: The options that the architecture is built with.
        key: Dotted path to the weights within the file; None for the likeliest.
        num_classes: Number of classes.
        strict: Whether the stored keys are taken as they are.
    """

    checkpoint: Part
    architecture: str | None
    num_classes: int
    code: Part | None = None
    options: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    strict: bool = False


@dataclass(frozen=True)
class Description:
    """The content of ``parts.json``, or of the file by which another toolbox's records are described.

    Attributes:
        network: The attacked network.
        images: The record's clean images.
        trigger: The parts of the trigger.
        target: A class number, ``all`` or ``all+SHIFT``.
        input_shape: Shape of the images as the network takes them, ``(C, H, W)``.
        mean: Mean of the normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of the normalization, per channel, on the [0, 1] scale.
        test: Positions of the test images.
        benign: Positions of the images that a defense may see.
        labels: File of the images' labels, where it is one of its own.
        seed: Seed by which test and benign images were drawn.
        versions: Versions of what ran.
        attack: The attack's name; None where nobody said.
        dataset: The data set's name; that of the images' file if None.
        poison_rate: Share of the training images that was poisoned; None where nobody said.
    """

    network: NetworkParts
    images: Part
    trigger: TriggerParts
    target: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test: tuple[int, ...]
    benign: tuple[int, ...]
    labels: Part | None = None
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    attack: str | None = None
    dataset: str | None = None
    poison_rate: float | None = None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The attributes by name, as plain JSON values."""
        return asdict(self)


def write_description(file: Path, description: Description) -> None:
    """Write a description."""
    write_json_atomically(file, description.to_json())


def read_description(file: Path) -> Description:
    """Read and check a description.

    Raises:
        RecordError: If it is missing, damaged, or written by another version.
    """
    return read_described(file, Description, schema_version=SCHEMA_VERSION, again="bench record")


def names_file(architecture: str | None) -> bool:
    """Whether an architecture is ``file.py:callable`` and so runs code of its own."""
    return (architecture or "").rpartition(":")[0].endswith(".py")


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or over the files of a folder, such as weights in several files."""
    if not path.is_dir():
        return sha256(path)
    files = sorted(file for file in path.iterdir() if file.is_file())
    return hashlib.sha256("".join(f"{file.name}\n{sha256(file)}\n" for file in files).encode()).hexdigest()


def require_present(path: Path) -> Path:
    """The same path.

    Raises:
        RecordError: If nothing lies there.
    """
    if not path.exists():
        raise RecordError(
            f"{path} is missing; put it back, or make the record again (bench record --copy keeps copies)"
        )
    return path


def require_unchanged(path: Path, part: Part) -> None:
    """Refuse a part that is not what it was when the record was made.

    Raises:
        RecordError: If it is missing or another.
    """
    require_same_hash(path, part, hash_of(require_present(path)))


def require_same_hash(path: Path, part: Part, found: str) -> None:
    """Refuse content that is not what it was when the record was made.

    Raises:
        RecordError: If the hashes differ.
    """
    if found != part.sha256:
        raise RecordError(
            f"{path}: expected SHA-256 {part.sha256[:16]}... as its description says, found {found[:16]}...; it has changed "
            "since the record was made: put it back, or make the record again"
        )
