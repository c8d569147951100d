"""The hash by which a record is known again, wherever it lies."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from clp_plugin.errors import RecordError
from clp_plugin.files.hashing import sha256
from clp_plugin.store.layout import ANALYSIS, DEFENSES, LOGS


def record_content(record: Path) -> str:
    """Hash of what a record consists of, without what was later found out about it.

    Files directly in the record count with their bytes, those in its folders (thousands of images) with name and size.

    Args:
        record: The record's folder.

    Returns:
        64 hexadecimal digits. Equal for copies of a record in other places; results of defenses and analyses, and all that
        is hidden, change nothing.

    Raises:
        RecordError: If the folder cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for root, folders, files in os.walk(record, onerror=_refuse):
            ours = (DEFENSES, ANALYSIS, LOGS) if Path(root) == record else ()
            folders[:] = sorted(name for name in folders if name not in ours and not name.startswith("."))
            for name in sorted(name for name in files if not name.startswith(".")):
                path = Path(root, name)
                told = sha256(path) if path.parent == record else str(path.stat().st_size)
                digest.update(f"{path.relative_to(record).as_posix()}\0{told}\0".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise RecordError(f"cannot read {record}: {error.strerror}; check its permissions") from error
    return digest.hexdigest()


def _refuse(error: OSError) -> None:
    raise error
