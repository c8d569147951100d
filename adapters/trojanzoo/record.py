"""What TrojanZoo's attacks store, as records: its files say most, and its user where the trigger is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clp_plugin.errors import ConfigError, RecordError
from clp_plugin.files.arrays import read_arrays
from clp_plugin.records.exchange import RecordListing
from clp_plugin.records.triggers import Shape, Trigger
from clp_plugin.types import Record

from ..parts.description import TriggerParts
from ..parts.record import PartsAdapter
from ..parts.request import PartsRequest
from .toolbox_facts import TOOLBOX

_LEVELS = 255.0
# square_white_tar0_alpha1.00_mark(6,6).pth, beside an .npy of the same stem
_STEM = re.compile(r"(?P<mark>.+)_tar(?P<target>\d+)_alpha(?P<alpha>\d+\.\d+)_mark\((?P<height>\d+),(?P<width>\d+)\).*")
# The network normalizes; its weights do not say how.
_NORMALIZATION: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "gtsrb": ((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
}


@dataclass(frozen=True)
class StoredAttack:
    """One attack's files, by their names.

    Attributes:
        weights: The attacked network's ``.pth``; the mark lies beside it as ``.npy``.
        target: The class that the attacker wants.
        opacity: Factor of the mark's own opacity.
        mark: The mark's name; it says where TrojanZoo puts the mark at a place of its own for each image.
    """

    weights: Path
    target: int
    opacity: float
    mark: str

    @property
    def places(self) -> tuple[str, str, str] | None:
        """Data set, network and attack, where the files lie in TrojanZoo's own folders."""
        parts = self.weights.absolute().parts
        return (parts[-4], parts[-3], parts[-2]) if len(parts) > 5 and parts[-5] == "image" else None


class TrojanZooRecords(PartsAdapter):
    """Reads the records that ``bench record --toolbox trojanzoo`` makes of an attack's ``.pth`` and ``.npy``."""

    toolbox = TOOLBOX
    description = "trojanzoo.json"

    @property
    def looks_for(self) -> str:
        return f"{self.description}, or *_tar*_mark(H,W).pth with its .npy"

    def sniff(self, path: Path) -> bool:
        return super().sniff(path) or (path.is_dir() and bool(stored_attacks(path)))

    def completed(self, request: PartsRequest) -> PartsRequest:
        """The request with mark, target, network and normalization as TrojanZoo's files and folders say.

        Raises:
            ConfigError: If the place of the mark, or what the folders do not say, is not given; or something is contradicted.
            RecordError: If the checkpoint is not one of TrojanZoo's, or its mark is elsewhere on each image.
        """
        attack = _stored(request.checkpoint)
        if attack is None:
            raise RecordError(
                f"{request.checkpoint}: expected a file such as square_white_tar0_alpha1.00_mark(3,3).pth beside an .npy of "
                "the same name"
            )
        if attack.mark.startswith(("scattered_", "randompos_")):
            raise RecordError(
                f"{request.checkpoint}: TrojanZoo puts this mark at a place of its own on each image; give such images with "
                "--triggered and without --toolbox"
            )
        if request.target not in (None, str(attack.target)):
            raise ConfigError(f"--target {request.target}: {request.checkpoint.name} says {attack.target}")
        if request.at is None:
            raise ConfigError(
                f"{request.checkpoint.name} does not say where the mark is: give --at X,Y with X its --mark_width_offset and Y "
                "its --mark_height_offset on TrojanZoo's command line (0,0 where neither was given)"
            )
        dataset, network, name = attack.places or (request.dataset, None, request.attack)
        mean, std = _NORMALIZATION.get(dataset or "", (None, None))
        if request.mean is None and mean is None:
            raise ConfigError(
                f"how the network normalizes images of {dataset or 'its data set'} is not in its file: give --mean and --std"
            )
        return replace(
            request,
            trigger=attack.weights.with_suffix(".npy"),
            blend=attack.opacity,
            target=str(attack.target),
            arch=request.arch or (None if network is None else f"{TOOLBOX}:{network}"),
            mean=request.mean or mean,
            std=request.std or std,
            dataset=request.dataset or dataset,
            attack=request.attack or name,
        )

    def trigger_of(self, parts: TriggerParts, folder: Path, shape: Shape) -> Trigger:
        """The mark: colours, and the opacity in its last channel."""
        file = parts.picture.below(folder)
        mark = read_arrays(file, raises=RecordError).get("x")
        if mark is None or mark.ndim != 3 or len(mark) != shape[0] + 1 or mark.dtype.kind != "f":
            raise RecordError(f"{file}: expected a mark of ({shape[0] + 1}, h, w) numbers, colours and opacity")
        return Trigger.blend(mark[:-1] * _LEVELS, parts.weight or 0.0, shape=shape, mask=mark[-1:], at=parts.at)

    def open(self, path: Path, *, trust: bool = False) -> Record:
        """Open a record.

        Raises:
            RecordError: If nobody said where the mark is, or a part is missing or has changed.
            CheckpointError: If the weights cannot be read safely or do not fit.
        """
        if super().sniff(path):
            return super().open(path, trust=trust)
        stored = ", ".join(attack.weights.name for attack in stored_attacks(path)) or "none"
        raise RecordError(
            f"{path}: holds attacks of TrojanZoo ({stored}), whose files do not say where the trigger is; say it with "
            "`bench record --toolbox trojanzoo --checkpoint FILE.pth --at X,Y ...`, or use the offsets of TrojanZoo's own "
            "script: `bench toolbox register trojanzoo -- backdoor_defense.py --attack NAME ... --defense clp`"
        )

    def records(self, root: Path) -> Iterator[RecordListing]:
        for path in sorted(child for child in root.glob("[!.]*") if self.sniff(child)):
            if super().sniff(path):
                yield self._listed(path)
            else:
                yield RecordListing(path, "attacks of TrojanZoo; see bench record --toolbox trojanzoo", complete=False)


def stored_attacks(folder: Path) -> list[StoredAttack]:
    """The attacks in a folder that lie there with their mark."""
    return [found for file in sorted(folder.glob("*.pth")) if (found := _stored(file)) is not None]


def _stored(file: Path) -> StoredAttack | None:
    found = _STEM.fullmatch(file.stem)
    if found is None or file.suffix != ".pth" or not file.with_suffix(".npy").is_file():
        return None
    return StoredAttack(file, int(found["target"]), float(found["alpha"]), found["mark"])
