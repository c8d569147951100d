"""The hash by which a file is known again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from clp_plugin.errors import CheckpointError
from clp_plugin.files.reading import open_regular


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file.

    Raises:
        CheckpointError: If it is no ordinary file or cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(file, raises=CheckpointError) as opened:
        for block in iter(lambda: opened.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
