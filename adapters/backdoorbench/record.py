"""Opens what the toolbox's attacks stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from clp_plugin.errors import ClpError, RecordError
from clp_plugin.files.hashing import sha256
from clp_plugin.images import ArrayImages, PickedImages
from clp_plugin.records.adapter import NamesItsFiles, ReadsRecords
from clp_plugin.records.exchange import TRAINING_SAMPLE, RecordListing
from clp_plugin.types import ImageSet, Provenance, Record, TriggeredSet

from ..image_sets.image_files import DecodedFiles, DeferredImages
from .attack_result import FILE, INFO, AttackResult, PoisonedSet, read_attack_result, read_info, why_incomplete
from .datasets import DatasetFacts, facts_of, find_data_root, read_split
from .models import load

TOOLBOX = "backdoorbench"
_MARKS = (FILE, INFO, "clean_model.pth")


class BackdoorBenchAdapter(ReadsRecords, NamesItsFiles):
    """Reads ``record/NAME`` folders."""

    looks_for = f"{FILE} or {INFO}"
    _opened: _Opened | None = None

    def sniff(self, path: Path) -> bool:
        return any((path / name).is_file() for name in _MARKS)

    def open(self, path: Path, *, trust: bool = False) -> Record:
        """Open a record.

        ``triggered`` is all of the toolbox's bd_test, ``clean`` its clean test set, so that ACC, ASR and RA are the
        toolbox's. ``benign`` is the clean training set, from which the toolbox's own defenses draw: the model was trained
        on these images, or on their poisoned versions. ``poisoned_training`` is a random part of the set trained on; None
        where the attack stored no poisoned training images.

        Args:
            path: The record's folder.
            trust: Allow pickles that run code.

        Raises:
            RecordError: If the record is incomplete or inconsistent, or its images cannot be found.
            CheckpointError: If its weights cannot be read safely or do not fit.
        """
        stamp = _stamp(path)
        result = read_attack_result(path, trust=trust)
        self._opened = _Opened(path, stamp, replace(result, state_dict={}))
        facts = facts_of(result.dataset, path / FILE)
        where = f"{path / FILE} as {result.model_name}"
        model = load(result.model_name, result.num_classes, result.state_dict, where=where)
        root = find_data_root(result)
        height, width, channels = result.image_size
        if (channels, height, width) != facts.shape:
            expected = (*facts.shape[1:], facts.shape[0])
            raise RecordError(
                f"{path / FILE}: img_size: expected {expected}, the toolbox's size for {facts.name}, found {result.image_size}"
            )
        clean = read_split(facts, root, "test")
        return Record(
            model=model,
            input_shape=(channels, height, width),
            clean=clean,
            triggered=_triggered(result, facts, clean, root),
            target=result.target,
            benign=DeferredImages(lambda: read_split(facts, root, "train")),
            poisoned_training=None
            if result.train is None
            else DeferredImages(partial(_training_sample, facts, root, result.train, result.seed)),
            provenance=_provenance(path, result, facts),
        )

    def attack_facts(self, path: Path, *, trust: bool = False) -> AttackResult:
        """All that the attack stored but for the weights; nothing is read again of the record that was opened last."""
        last = self._opened
        if last is not None and (last.folder, last.stamp) == (path, _stamp(path)):
            return last.facts
        return read_attack_result(path, trust=trust)

    def records(self, root: Path) -> Iterator[RecordListing]:
        for path in sorted(child for child in root.glob("[!.]*") if child.is_dir() and self.sniff(child)):
            if (path / FILE).is_file():
                yield RecordListing(path, _summary(path), complete=True)
            else:
                yield RecordListing(path, why_incomplete(path), complete=False)


@dataclass(frozen=True)
class _Opened:
    """The attack result that was read last, and the time and size of its file then."""

    folder: Path
    stamp: tuple[int, int]
    facts: AttackResult


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = (path / FILE).stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _triggered(result: AttackResult, facts: DatasetFacts, clean: ImageSet, root: Path) -> TriggeredSet:
    test = result.test
    _require_files(test)
    if test.indices.max() >= len(clean) or not np.array_equal(clean.labels[test.indices], test.true_labels):
        raise RecordError(
            f"{root}: not the test set that {result.folder / FILE} was made on: expected {len(test.indices)} of its images "
            f"to have the stored labels (highest index {test.indices.max()}), found other labels or too few images "
            f"({len(clean)}). Put the right data set there"
        )
    pixels = DecodedFiles(test.files, (result.image_size[2], *result.image_size[:2]))
    positions = np.arange(len(test.indices), dtype=np.int64)
    return TriggeredSet(PickedImages(pixels, test.true_labels, facts.mean, facts.std, positions), test.indices)


def _training_sample(facts: DatasetFacts, root: Path, poisoned: PoisonedSet, seed: int) -> ArrayImages:
    """A random part of the poisoned training set, as the model was trained on it but for augmentation."""
    clean = read_split(facts, root, "train")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(clean))[:TRAINING_SAMPLE])
    part = clean.take(chosen)
    pixels = part.pixels.copy() if isinstance(part, ArrayImages) else part.pixels[part.positions]
    labels = part.labels.copy()
    _, rows, places = np.intersect1d(chosen, poisoned.indices, return_indices=True)
    if len(places):
        files = poisoned.files
        pixels[rows] = DecodedFiles([files[place] for place in places], facts.shape)[np.arange(len(places))]
        labels[rows] = poisoned.given_labels[places]
    return ArrayImages(pixels, labels, facts.mean, facts.std)


def _require_files(poisoned: PoisonedSet) -> None:
    """Look for missing files with one listing a class instead of a look at each file."""
    if not poisoned.folder.is_dir():
        raise RecordError(f"{poisoned.folder} is missing: the record's triggered images; copy the record again, whole")
    wanted: dict[Path, set[str]] = {}
    for file in poisoned.files:
        wanted.setdefault(file.parent, set()).add(file.name)
    missing = [
        folder / name
        for folder, names in wanted.items()
        for name in sorted(names - {file.name for file in (folder.iterdir() if folder.is_dir() else ())})
    ]
    if missing:
        raise RecordError(
            f"{missing[0]} is missing, and {len(missing) - 1} more of {len(poisoned.indices)} triggered images; "
            "copy the record again, whole"
        )


def _summary(path: Path) -> str:
    """Describe a record by its settings alone: the result file is large."""
    try:
        info = read_info(path)
    except ClpError as error:
        return f"{INFO} cannot be read: {error}"
    if not info:
        return f"no {INFO}; open it to see what it is"
    rule = "all to all" if info.get("attack_label_trans") == "all2all" else f"target {info.get('attack_target', '?')}"
    return f"{info.get('attack', 'unknown')} ({rule}), {info.get('dataset')}, {info.get('model')}, rate {info.get('pratio')}"


def _provenance(path: Path, result: AttackResult, facts: DatasetFacts) -> Provenance:
    return Provenance(
        toolbox=TOOLBOX,
        path=str(path),
        sha256=sha256(path / FILE),
        attack=result.attack,
        dataset=result.dataset,
        architecture=f"{TOOLBOX}:{result.model_name}",
        poison_rate=result.poison_rate,
        seed=result.seed,
        mean=facts.mean,
        std=facts.std,
    )
