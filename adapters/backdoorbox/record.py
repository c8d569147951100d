"""Opens the folders that BackdoorBox's training makes, with what a description says of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from clp_plugin.errors import RecordError
from clp_plugin.records.exchange import RecordListing
from clp_plugin.types import Record

from ..parts.record import PartsAdapter

TOOLBOX = "backdoorbox"
_CHECKPOINT = re.compile(r"ckpt_epoch_(\d+)\.pth")
_SAY_HOW = (
    "BackdoorBox stores neither trigger nor target; say them with `bench record --toolbox backdoorbox --checkpoint "
    "FOLDER/ckpt_epoch_N.pth --out FOLDER ...`, or let the live attack do it: clp_plugin.adapters.backdoorbox.save_record"
)


class BackdoorBoxRecords(PartsAdapter):
    """Reads the folder of an experiment: ``ckpt_epoch_N.pth`` and ``log.txt`` are the toolbox's, the description is ours."""

    toolbox = TOOLBOX
    description = "backdoorbox.json"
    beside_checkpoint = True

    @property
    def looks_for(self) -> str:
        return f"{self.description}, or log.txt with ckpt_epoch_N.pth"

    def sniff(self, path: Path) -> bool:
        return super().sniff(path) or ((path / "log.txt").is_file() and bool(checkpoints(path)))

    def open(self, path: Path, *, trust: bool = False) -> Record:
        """Open a record.

        Raises:
            RecordError: If nothing says what the toolbox does not store, or a part is missing or has changed.
            CheckpointError: If the weights cannot be read safely or do not fit.
        """
        if not super().sniff(path):
            raise RecordError(f"{path}: {self.description} is missing. {_SAY_HOW}")
        return super().open(path, trust=trust)

    def records(self, root: Path) -> Iterator[RecordListing]:
        for path in sorted(child for child in root.glob("[!.]*") if child.is_dir() and self.sniff(child)):
            if super().sniff(path):
                yield self._listed(path)
            else:
                yield RecordListing(
                    path, f"{checkpoints(path)[-1].name}; {self.description} is missing", complete=False
                )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training, by epoch."""
    found = [(int(match[1]), file) for file in folder.glob("*.pth") if (match := _CHECKPOINT.fullmatch(file.name))]
    return [file for _, file in sorted(found)]
