"""Mutated files of every kind that is read: each must be read or refused by a ClpError, within 5 seconds and 1 GB.

    python benchmarks/fuzz.py [--count 20000] [--seed 0] [--only KIND] [--replay KIND:NUMBER]

An input is decided by its kind, the seed and its number. Half of the mutations change bytes, half change values and write
the file anew with right lengths and checksums. Each is read in a child process; one that dies, takes too long or grows too
far counts against us. Prints one line a kind; exit status 1 if anything but a ClpError came out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.numpy import save

from clp_plugin.adapters.backdoorbench.attack_result import FILE, read_attack_result
from clp_plugin.adapters.builtin.record_files import load_arrays, read_description
from clp_plugin.adapters.image_sets.cifar_batches import TEST_FILES, read_batches
from clp_plugin.adapters.image_sets.gtsrb import _read_table
from clp_plugin.adapters.image_sets.image_files import FORMATS, decode
from clp_plugin.config import CONFIG_VARIABLE, load_settings
from clp_plugin.errors import ClpError
from clp_plugin.files.checkpoints import load_checkpoint
from clp_plugin.files.option_values import parse_options
from clp_plugin.files.reading import read_text
from clp_plugin.files.torch_files import read_pickle_checkpoint
from clp_plugin.masking.apply import load_mask
from clp_plugin.registry import load_catalogue
from clp_plugin.store.outcomes import load_outcome

SECONDS, MEGABYTES = 5.0, 1024
_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, float("inf"), float("nan"), 2**31, 2**63, 2**64, 10**30, 10**5000, "", "x", "\0", "\ud800",
    "[red]", "\x1b[31m", "x" * 10_000, [], {}, [[]], ["x"], {"x": 1}, [0] * 5, {"a": {"b": []}},
)  # fmt: skip
_BYTES = (b"\0", b"\xff", b"[", b"{", b'"', b":", b"\n", b"&a", b"*a", b"(", b".", b"\x80", b"PK\x03\x04", b"1" * 40)


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: The file's name.
        write: The bytes of a file with this content.
        content: Of a file that is sound; None where only bytes are mutated.
        read: Reads the file.
    """

    name: str
    write: Callable[[Any], bytes]
    content: Any
    read: Callable[[Path], object]


def _saved(*, legacy: bool = False) -> Callable[[Any], bytes]:
    def write(content: Any) -> bytes:
        torch.save(content, file := io.BytesIO(), _use_new_zipfile_serialization=not legacy)
        return file.getvalue()

    return write


def _picture(form: str) -> Callable[[Any], bytes]:
    def write(content: Any) -> bytes:
        Image.fromarray(content).save(file := io.BytesIO(), format=form)
        return file.getvalue()

    return write


def _safetensors(content: Any) -> bytes:
    """A file whose header is ``content``, over 64 bytes."""
    header = json.dumps(content).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + bytes(64)


def _json(content: Any) -> bytes:
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _yaml(content: Any) -> bytes:
    return yaml.safe_dump(content).encode("utf-8", "surrogatepass")


def _rows(content: Any) -> bytes:
    return "\n".join(";".join(map(str, row)) for row in content).encode("utf-8", "surrogatepass")


def _configured(path: Path) -> object:
    os.environ[CONFIG_VARIABLE] = str(path)
    return load_settings()


def _poisoned() -> dict[str, Any]:
    entries = {index: {"path": f"{index}.png", "other_info": [0, index % 3 + 1]} for index in range(6)}
    container = {"data_dict": entries, "save_folder_path": "./record/x/bd_test_dataset", "save_file_format": ".png"}
    return {"bd_data_container": container, "original_index_array": np.arange(6), "poison_indicator": np.ones(6)}


def kinds() -> Mapping[str, Kind]:
    """All of them, by name."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    weights = {"conv.weight": torch.rand(4, 3, 3, 3), "conv.bias": torch.rand(4), "n": torch.tensor(3)}
    nested = {"state_dict": weights, "epoch": 3, "args": {"lr": 0.1, "index": np.arange(5), "names": ["a", "b"]}}
    result = {
        "model_name": "resnet18", "num_classes": 10, "model": weights, "data_path": "./data/cifar10", "clean_data": "cifar10",
        "img_size": [32, 32, 3], "bd_train": None, "bd_test": _poisoned(),
    }  # fmt: skip
    batch = {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 2], "filenames": ["a", "b", "c"]}
    table = [["Filename", "Width", "ClassId"], *([f"0000{index}.ppm", 30, index] for index in range(5))]
    entry = {"object": "clp_plugin.defenses.clp:CLP", "summary": "x", "defaults": {"u": 3.0}, "replaces": "clp"}
    outcome = {
        "schema_version": 1, "protocol": "defender", "method": "clp", "command": "x", "seed": 0, "device": "cpu",
        "seconds": 1.0, "versions": {"python": "3"}, "created": "x", "options": {"u": 3},
    }  # fmt: skip
    header = {
        "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "b": {"dtype": "I64", "shape": [4], "data_offsets": [32, 64]},
    }
    record = {
        "attack": "badnets", "dataset": "digits", "architecture": "builtin:resnet18", "architecture_options": {"width": 8},
        "class_names": ["a", "b"], "input_shape": [3, 8, 8], "mean": [0.5] * 3, "std": [0.2] * 3,
        "target": {"kind": "all_to_one", "num_classes": 2, "target": 0}, "trigger": {}, "poison_rate": 0.1, "seed": 0,
        "sha256": "0" * 64, "settings": {}, "training": {}, "versions": {}, "schema_version": 2, "toolbox": "builtin",
    }  # fmt: skip
    option = {"epochs": 10, "layers": ["a", "b"], "when": "2020-01-01"}
    found = {
        "checkpoint": Kind("x.pt", _saved(), nested, load_checkpoint),
        "legacy": Kind("x.pth", _saved(legacy=True), nested, load_checkpoint),
        "plain": Kind("info.pickle", _saved(), nested["args"], read_pickle_checkpoint),
        "attack-result": Kind(FILE, _saved(), result, lambda path: read_attack_result(path.parent)),
        "safetensors": Kind("x.safetensors", _safetensors, header, load_checkpoint),
        "arrays": Kind("images.safetensors", lambda _: save({"a": pixels}), None, load_arrays),
        "cifar": Kind("test_batch", pickle.dumps, batch, lambda path: read_batches(path.parent, TEST_FILES)),
        "record": Kind("record.json", _json, record, lambda path: read_description(path.parent)),
        "outcome": Kind("x.json", _json, outcome, load_outcome),
        "mask": Kind(
            "x.json", _json, {"schema_version": 1, "layers": {"conv": {"channels": 4, "pruned": [1]}}}, load_mask
        ),
        "registry": Kind("x.yaml", _yaml, {"defenses": {"clp": entry}, "attacks": {}}, load_catalogue),
        "config": Kind("c.yaml", _yaml, {"toolboxes": {"x": {"root": "y"}}}, _configured),
        "option": Kind("o", _yaml, option, lambda path: parse_options([f"a={read_text(path, raises=ClpError)}"])),
        "table": Kind("x.csv", _rows, table, _read_table),
    }
    for form in FORMATS:
        found[f"image-{form.lower()}"] = Kind(
            "x.png", lambda _, form=form: _picture(form)(pixels), None, lambda path: decode(path, (3, 8, 8))
        )
    return found


def mutated(kind: Kind, rng: random.Random) -> bytes:
    """The bytes of a file of this kind with one to five mutations, of values or of bytes."""
    if kind.content is not None and rng.random() < 0.5:
        content = pickle.loads(pickle.dumps(kind.content))
        with contextlib.suppress(Exception):  # not everything can be changed or written
            for _ in range(rng.randint(1, 3)):
                content = _with_odd_value(content, rng)
            return kind.write(content)
    data = kind.write(kind.content)
    inside = data[:4] == b"PK\x03\x04" and rng.random() < 0.5
    if not inside:
        return _with_odd_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file := io.BytesIO(), "w") as target:
        chosen = rng.choice(source.namelist())
        for name in source.namelist():
            member = source.read(name)
            method = (
                rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)) if name == chosen else None
            )
            target.writestr(name, _with_odd_bytes(member, rng) if name == chosen else member, compress_type=method)
    return file.getvalue()


def _with_odd_value(content: Any, rng: random.Random) -> Any:
    """The content with one value, key or length changed, at any depth."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        choice = rng.random()
        if choice < 0.1:
            return {name: value for name, value in content.items() if name != key}
        if choice < 0.2:
            return {**content, rng.choice((1, "y", 1.5, None, ("a", 2))): content[key]}
        return {**content, key: _with_odd_value(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.9:
        place = rng.randrange(len(content))
        return [*content[:place], _with_odd_value(content[place], rng), *content[place + 1 :]]
    if isinstance(content, (torch.Tensor, np.ndarray)) and rng.random() < 0.5:
        changes: tuple[Callable[[Any], Any], ...] = (
            lambda value: value[:1] if value.ndim else value[None],
            lambda value: value.reshape(-1),
            lambda value: torch.as_tensor(value).expand(2**20, *value.shape),
            lambda value: torch.as_tensor(value).to_sparse(),
            lambda value: np.asarray(value).astype(rng.choice(("O", "S3", "M8[s]", ">f8", "c16", "f2"))),
            lambda value: torch.as_tensor(value).double().mul(float("nan")),
        )
        return rng.choice(changes)(content)
    return rng.choice(_ODD)


def _with_odd_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 8, 64, len(changed)))
        what = rng.randrange(6)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[at : at + length] = rng.randbytes(min(length, 8))
        elif what == 2:
            del changed[at : at + length]
        elif what == 3:
            changed[at:at] = rng.choice(_BYTES) * rng.choice((1, 1, 3, 10_000))
        elif what == 4:
            changed[at:at] = changed[at : at + length]
        else:
            changed[at : at + 4] = rng.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(4, rng.choice(("little", "big")))  # type: ignore[arg-type]
    return bytes(changed)


def outcome_of(kind: Kind, data: bytes, folder: Path) -> str:
    """``"read"``, ``"refused"``, or what went wrong."""
    path = folder / kind.name
    path.write_bytes(data)
    try:
        kind.read(path)
    except ClpError:
        return "refused"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {str(error)[:100]}"
    return "read"


def _work(channel: Connection, seed: int) -> None:
    """Answers each ``(kind, number)`` with the outcome, until told None."""
    known = kinds()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, number in iter(channel.recv, None):
            data = mutated(known[name], random.Random(f"{seed} {name} {number}"))
            outcome = outcome_of(known[name], data, Path(folder))
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            channel.send(outcome if grown < MEGABYTES else f"took {grown} MB")


def fuzz(names: list[str], count: int, seed: int) -> dict[str, Counter[str]]:
    """Outcomes by kind of ``count`` inputs, shared evenly among the kinds."""
    context = multiprocessing.get_context("fork")
    found: dict[str, Counter[str]] = {name: Counter() for name in names}
    worker, channel = None, None
    for position in range(count):
        if worker is None or channel is None:
            channel, other = context.Pipe()
            worker = context.Process(target=_work, args=(other, seed), daemon=True)
            worker.start()
            other.close()
        name, number = names[position % len(names)], position // len(names)
        channel.send((name, number))
        try:
            outcome = channel.recv() if channel.poll(SECONDS) else f"took more than {SECONDS} s"
        except EOFError:
            outcome = "killed the process"
        if outcome not in ("read", "refused"):
            print(f"{name}:{number}: {outcome}", flush=True)
            worker.kill()
            worker = None
        found[name][outcome] += 1
    if channel is not None and worker is not None:
        channel.send(None)
        worker.join()
    return found


def main() -> int:
    """Run from the command line; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=kinds())
    parser.add_argument("--replay", metavar="KIND:NUMBER", help="Read one input in this process.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.replay:
        name, _, number = given.replay.partition(":")
        kind = kinds()[name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, kind.name)
            path.write_bytes(mutated(kind, random.Random(f"{given.seed} {name} {number}")))
            print(kind.read(path))
        return 0
    found = fuzz([given.only] if given.only else list(kinds()), given.count, given.seed)
    wrong = 0
    for name, outcomes in found.items():
        others = sum(count for outcome, count in outcomes.items() if outcome not in ("read", "refused"))
        wrong += others
        print(f"{name:14} read {outcomes['read']:6} refused {outcomes['refused']:6} other {others}")
    print(f"{given.count} inputs, {wrong} neither read nor refused")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
