"""Images of strangers: the formats of data sets only, and no larger than a photograph."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from clp_plugin.adapters.image_sets.image_files import FORMATS, MOST_PIXELS, decode
from clp_plugin.adapters.image_sets.image_folder import decode as decode_folder
from clp_plugin.adapters.image_sets.image_folder import native_size
from clp_plugin.errors import RecordError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def readers(file: Path) -> None:
    for read in (lambda: decode(file, (3, 8, 8)), lambda: decode_folder([file], 8)):
        with pytest.raises(RecordError, match=file.name):
            read()


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.ppm", "x.eps"])
def test_postscript_never_reaches_its_interpreter(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **facts: called.append(args))
    (tmp_path / name).write_bytes(EPS)
    with Image.open(tmp_path / name) as opened:
        assert opened.format == "EPS", "Pillow must take it for what it is, or the test proves nothing"
    readers(tmp_path / name)
    with pytest.raises(RecordError):
        native_size(tmp_path / name)
    assert not called


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_of_data_sets_are_read_whatever_the_name(tmp_path: Path, kind: str) -> None:
    pixels = np.full((8, 8, 3), 120, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png", format=kind)
    assert np.abs(decode(tmp_path / "x.png", (3, 8, 8)).astype(int) - 120).max() <= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("side", [9_460, 60_000, 2**31 - 1])
def test_size_is_checked_before_an_image_is_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    assert side**2 > MOST_PIXELS
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    readers(tmp_path / "x.png")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file := io.BytesIO(), format="PNG")
    for content in (b"", b"text", file.getvalue()[:45]):
        (tmp_path / "x.png").write_bytes(content)
        readers(tmp_path / "x.png")
