"""TrojanZoo as a toolbox: its scripts run with methods of this plugin among their defenses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from clp_plugin.errors import RecordError
from clp_plugin.records.adapter import NamesItsFiles, ReadsRecords, RunsScripts
from clp_plugin.records.exchange import RecordListing
from clp_plugin.types import Record

from .registration import run_script

# square_white_tar0_alpha1.00_mark(6,6).pth, beside an .npy of the same stem
_STORED = re.compile(r".+_tar\d+_.*mark\(\d+,\d+\)")


class TrojanZoo(ReadsRecords, NamesItsFiles, RunsScripts):
    """Knows what TrojanZoo's attacks store when it sees it; the place of the trigger is in none of these files."""

    @property
    def looks_for(self) -> str:
        return "*_tar*_mark(H,W).pth with its .npy"

    def sniff(self, path: Path) -> bool:
        return path.is_dir() and any(True for _ in _attacks(path))

    def open(self, path: Path, *, trust: bool = False) -> Record:
        """Refuse: the mark's offset and the network's data set are known to the command line of the attack alone.

        Raises:
            RecordError: Always, with the command that measures and repairs such a model.
        """
        del trust
        stored = ", ".join(attack.name for attack in _attacks(path)) or "none"
        raise RecordError(
            f"{path}: holds attacks of TrojanZoo ({stored}), whose files do not say where the trigger is; its own script has "
            "the offsets: `bench toolbox register trojanzoo -- backdoor_defense.py --attack NAME ... --defense clp`"
        )

    def records(self, root: Path) -> Iterator[RecordListing]:
        for path in sorted(child for child in root.glob("[!.]*") if self.sniff(child)):
            yield RecordListing(path, "attacks of TrojanZoo; see bench toolbox register trojanzoo", complete=False)

    def run_script(self, script: Path, arguments: Sequence[str], *, root: Path | None = None) -> None:
        del root  # it is installed as a package
        run_script(script, arguments)


def _attacks(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.glob("*.pth")):
        if _STORED.fullmatch(file.stem) and file.with_suffix(".npy").is_file():
            yield file
