"""The one way in for files of text: ordinary files only, of bounded size, depth and numbers, and every failure in one line."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import BinaryIO

import yaml

from clp_plugin.errors import ClpError

LARGEST_TEXT = 16 << 20
_LARGEST_YAML = 256 << 10  # its parser reads about a tenth of a megabyte a second
_MAX_YAML_NODES = 100_000
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path, *, raises: type[ClpError], expected: str = "an ordinary file") -> BinaryIO:
    """Open a file for reading bytes, if it is one: opening a pipe would wait for ever, and a device may act.

    Args:
        path: Links are followed.
        raises: The error to raise.
        expected: The kind of file that should lie there, for the message.

    Raises:
        ClpError: The given one, if there is no ordinary file or it cannot be opened.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise raises(f"cannot read {path}: {reason}; check the path and its permissions") from error
    kind = next((name for matches, name in _KINDS if matches(mode)), "no file")
    raise raises(f"{path} is {kind}; expected {expected}")


def read_bytes(path: Path, *, raises: type[ClpError], limit: int = LARGEST_TEXT) -> bytes:
    """All bytes of a file.

    Args:
        path: Links are followed.
        raises: The error to raise.
        limit: The largest size that is read, in bytes.

    Raises:
        ClpError: The given one, if it is no ordinary file, too large or cannot be read.
    """
    try:
        with open_regular(path, raises=raises) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise raises(f"cannot read {path}: {error.strerror}; copy it again") from error
    if len(content) > limit:
        raise raises(f"{path} is larger than the {limit / 2**20:.3g} MiB that such a file may have")
    return content


def read_text(path: Path, *, raises: type[ClpError], limit: int = LARGEST_TEXT) -> str:
    """A file of UTF-8; arguments and errors as of :func:`read_bytes`.

    Raises:
        ClpError: The given one, also if the file is no UTF-8.
    """
    try:
        return read_bytes(path, raises=raises, limit=limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise raises(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}; copy it again") from error


def read_json(path: Path, *, raises: type[ClpError], advice: str = "copy it again") -> object:
    """A file of JSON as plain data.

    Args:
        path: Links are followed.
        raises: The error to raise.
        advice: Ends the message, if the file is damaged.

    Raises:
        ClpError: The given one, if the file cannot be read, or :func:`parse_json` refuses its text.
    """
    try:
        return parse_json(read_text(path, raises=raises))
    except ValueError as error:
        raise raises(f"{path} is not JSON: {error}; {advice}") from error


def parse_json(text: str) -> object:
    """Plain data; whole numbers have at most 64 bits, and text is text: no half of a pair of surrogates.

    Raises:
        ValueError: If it is no JSON, or nested too deeply.
    """
    try:
        content: object = json.loads(text, parse_int=_whole_number)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("its text holds half a character") from error
    return content


def read_yaml(path: Path, *, raises: type[ClpError], unique_keys: bool = False) -> object:
    """A file of YAML as plain data.

    Args:
        path: Links are followed.
        raises: The error to raise.
        unique_keys: Refuse a name that stands twice; YAML itself would silently keep the last.

    Raises:
        ClpError: The given one, if the file cannot be read, or :func:`parse_yaml` refuses its text.
    """
    try:
        return parse_yaml(read_text(path, raises=raises, limit=_LARGEST_YAML), unique_keys=unique_keys)
    except ValueError as error:
        raise raises(f"{path} is not valid YAML: {error}") from error


def parse_yaml(text: str, *, unique_keys: bool = False) -> object:
    """Plain data of a YAML text; aliases may not multiply it, and whole numbers have at most 64 bits.

    Raises:
        ValueError: If it is no YAML, nested too deeply, or grows beyond measure.
    """
    try:
        content: object = (_UniqueKeyLoader if unique_keys else _BoundedLoader)(text).get_single_data()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # constructors raise whatever int(), date() and regular expressions do
        kind = "" if isinstance(error, (yaml.YAMLError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(f"{kind}{' '.join(str(error).split())}") from error
    return content


def read_csv(path: Path, *, raises: type[ClpError], delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a table, column by name; cells that a row lacks are left out, surplus ones dropped.

    Args:
        path: Links are followed. Its first line names the columns.
        raises: The error to raise.
        delimiter: Stands between cells.

    Raises:
        ClpError: The given one, if the file cannot be read or is no table.
    """
    text = read_text(path, raises=raises)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise raises(f"{path} is not a table: {error}; copy it again") from error
    return [{key: cell for key, cell in row.items() if key is not None and cell is not None} for row in rows]


@functools.lru_cache(maxsize=4096)  # a file's numbers are mostly the same few, thousands of times
def _whole_number(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise ValueError(f"a whole number of {len(digits)} digits is larger than any that is expected")
    return value


class _BoundedLoader(yaml.SafeLoader):
    """Plain data only, of a size that is known before any of it is built."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"a whole number of {len(node.value)} digits is larger than any that is expected")
        return value


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _BoundedLoader.construct_yaml_int)


class _UniqueKeyLoader(_BoundedLoader):
    """No name twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands here twice", key_node.start_mark)
            seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))


def _count_nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """How many nodes there are, each alias counted as all that it stands for."""
    if id(node) not in known:
        known[id(node)] = math.inf  # met again within itself
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        children = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count_nodes(child, known) for child in children)
    if known[id(node)] > _MAX_YAML_NODES:
        raise ValueError("its aliases make too much of it, or refer to themselves")
    return known[id(node)]
