"""Read a JSON file that describes a record as the dataclass that was written to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from clp_plugin.errors import RecordError
from clp_plugin.files.reading import read_json

Described = TypeVar("Described")


def read_described(file: Path, kind: type[Described], *, schema_version: int, again: str) -> Described:
    """The description in a file, checked.

    Args:
        file: JSON with ``schema_version`` and the fields of ``kind``.
        kind: The dataclass that the description becomes.
        schema_version: The version of the file format that is read.
        again: The command that writes such a file, for messages.

    Raises:
        RecordError: If the file is missing, damaged, or written by another version.
    """
    data = read_json(file, raises=RecordError, advice=f"expected a record made by `{again}`")
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if version != schema_version:
        raise RecordError(
            f"{file}: expected schema_version {schema_version}, found {version!r}; open it with the version of clp-plugin "
            f"that wrote it, or run `{again}` again"
        )
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        raise RecordError(f"{file}: {where}: {first['msg']}; the file is damaged or was edited") from error
