"""Opens a poisoned set of backdoor-toolbox with the network that was trained on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from clp_plugin.errors import RecordError
from clp_plugin.files.checkpoints import load_checkpoint
from clp_plugin.files.hashing import sha256
from clp_plugin.files.torch_files import read_pickle_checkpoint
from clp_plugin.networks.architectures import build_model
from clp_plugin.networks.fitting import fit_state_dict
from clp_plugin.records.adapter import NamesItsFiles, ReadsRecords
from clp_plugin.records.exchange import RecordListing
from clp_plugin.records.parts import record_from
from clp_plugin.records.triggers import Trigger
from clp_plugin.types import Floats, Ints, Provenance, Record

from ..driving.checkout import commit_of
from ..image_sets.image_files import DecodedFiles, open_image
from .toolbox_facts import BACKDOOR_TOOLBOX, DATASETS, NETWORKS, Configuration, DatasetFacts, read_configuration

TOOLBOX = "backdoor_toolbox"
_PATCHES = ("badnet", "badnet_all_to_all", "trojan", "clean_label")
_BLENDS = ("blend", "adaptive_blend")
_FADED = ("basic",)  # a patch that is mixed in
_FOLDER = re.compile(
    r"(?P<attack>[a-zA-Z_]+?)_(?P<rate>\d\.\d{3})(?:_alpha=(?P<alpha>\d\.\d+))?(?:_cover=\d\.\d+)?"
    r"(?:_trigger=(?P<trigger>.+?))?(?:_poison_seed=(?P<seed>\d+))?"
)
_LEVELS = 255
_NETWORK = "full_base_*seed=*.pt"


@dataclass(frozen=True)
class PoisonedSet:
    """A folder ``poisoned_train_set/DATASET/NAME``, by its name.

    Attributes:
        folder: The folder.
        attack: The toolbox's word for the attack, such as ``"badnet"``.
        rate: Share of the training images that was poisoned.
        alpha: Share of the trigger in a blend, where the name tells.
        trigger: The trigger's file, where the name tells.
        seed: Seed of the poisoning, which the toolbox's configuration holds.
    """

    folder: Path
    attack: str
    rate: float
    alpha: float | None
    trigger: str | None
    seed: int

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.folder.parent.name

    @property
    def root(self) -> Path:
        """The checkout."""
        return self.folder.parent.parent.parent


class BackdoorToolboxRecords(ReadsRecords, NamesItsFiles):
    """Reads ``poisoned_train_set/DATASET/NAME`` in its checkout, whose configuration, clean images and triggers it needs."""

    @property
    def looks_for(self) -> str:
        return f"poison_indices and {_NETWORK}"

    def sniff(self, path: Path) -> bool:
        return (path / "poison_indices").is_file() and (path / "labels").is_file()

    def open(self, path: Path, *, trust: bool = False) -> Record:
        """Open a record: tested on the toolbox's ``test_split``, with its ``clean_split`` as the defender's images.

        Raises:
            RecordError: If something is missing, or the attack's trigger is not a picture.
            CheckpointError: If the weights cannot be read safely or do not fit; the toolbox goes on with random ones.
        """
        network = network_file(path)
        poisoned = poisoned_set(path)
        lacking = BACKDOOR_TOOLBOX.lacking(poisoned.root)
        if lacking:
            raise RecordError(
                f"{path}: expected it in its checkout, as CHECKOUT/poisoned_train_set/DATASET/NAME, but {poisoned.root} lacks "
                f"{', '.join(lacking)}"
            )
        facts = _facts(poisoned)
        configuration = read_configuration(poisoned.root)
        architecture = _architecture(poisoned, configuration)
        model: nn.Module = build_model(architecture, num_classes=facts.num_classes)
        fit_state_dict(model, load_checkpoint(network, trust=trust), where=f"{network} as {architecture}")
        clean = poisoned.root / "clean_set" / poisoned.dataset
        test, test_labels = _split(clean / "test_split", "labels")
        benign, benign_labels = _split(clean / "clean_split", "clean_labels")
        all_to_all = poisoned.attack == "badnet_all_to_all"
        return record_from(
            model,
            DecodedFiles([*test, *benign], facts.shape),
            np.concatenate([test_labels, benign_labels]),
            trigger=_trigger(poisoned, configuration, facts),
            target="all" if all_to_all else int(configuration.of("target_class", poisoned.dataset)),
            num_classes=facts.num_classes,
            mean=facts.mean,
            std=facts.std,
            test=np.arange(len(test)),
            benign=len(test) + np.arange(len(benign)),
            provenance=Provenance(
                toolbox=TOOLBOX,
                path=str(path),
                sha256=sha256(network),
                attack=poisoned.attack,
                dataset=poisoned.dataset,
                architecture=architecture,
                poison_rate=poisoned.rate,
                seed=poisoned.seed,
                mean=facts.mean,
                std=facts.std,
                toolbox_commit=commit_of(poisoned.root),
            ),
        )

    def records(self, root: Path) -> Iterator[RecordListing]:
        for path in sorted(child for child in root.glob("[!.]*") if self.sniff(child)):
            try:
                poisoned = poisoned_set(path)
                network = network_file(path)
                _facts(poisoned)
                _kind(poisoned)
            except RecordError as error:
                yield RecordListing(path, str(error), complete=False)
                continue
            yield RecordListing(path, f"{poisoned.attack}, {poisoned.dataset}, {network.name}", complete=True)


def poisoned_set(path: Path) -> PoisonedSet:
    """What a folder's name says.

    Raises:
        RecordError: If it is not a name as the toolbox gives it.
    """
    path = path.absolute()
    found = _FOLDER.fullmatch(path.name)
    if found is None:
        raise RecordError(f"{path}: expected a name such as badnet_0.100_poison_seed=0; keep the toolbox's own names")
    alpha, seed = found["alpha"], found["seed"]
    return PoisonedSet(
        path,
        found["attack"],
        float(found["rate"]),
        None if alpha is None else float(alpha),
        found["trigger"],
        int(seed or 0),
    )


def network_file(path: Path) -> Path:
    """The one network that was trained on the set; the toolbox would take random weights for one that is missing."""
    found = sorted(path.glob(_NETWORK))
    if len(found) != 1:
        told = ", ".join(file.name for file in found) or "none"
        raise RecordError(
            f"{path}: expected one network such as full_base_aug_seed=2333.pt, found {told}; "
            + ("keep one and move the others away" if found else "train it with train_on_poisoned_set.py")
        )
    return found[0]


def _facts(poisoned: PoisonedSet) -> DatasetFacts:
    if poisoned.dataset not in DATASETS:
        raise RecordError(
            f"{poisoned.folder}: data set {poisoned.dataset!r} is not read; expected {', '.join(DATASETS)}"
        )
    return DATASETS[poisoned.dataset]


def _architecture(poisoned: PoisonedSet, configuration: Configuration) -> str:
    named = configuration.networks.get(poisoned.dataset, "none")
    if named not in NETWORKS:
        raise RecordError(
            f"{configuration.file}: arch[{poisoned.dataset!r}] is {named}; only {', '.join(NETWORKS)} is read from here. For "
            f"others: bench record --checkpoint {poisoned.folder / _NETWORK} --arch {poisoned.root / 'utils'}/FILE.py:NAME ..."
        )
    return NETWORKS[named]


def _kind(poisoned: PoisonedSet) -> str:
    if poisoned.attack not in (*_PATCHES, *_BLENDS, *_FADED):
        raise RecordError(
            f"{poisoned.folder}: the trigger of {poisoned.attack} is no picture; read from here are "
            f"{', '.join((*_PATCHES, *_BLENDS, *_FADED))}; give others as images (bench record --triggered)"
        )
    return poisoned.attack


def _trigger(poisoned: PoisonedSet, configuration: Configuration, facts: DatasetFacts) -> Trigger:
    """The trigger that the toolbox evaluates with: rebuilt from its pictures, not taken from the poisoned set."""
    attack = _kind(poisoned)
    name = poisoned.trigger or str(configuration.of("trigger_default", poisoned.dataset, attack))
    folder = poisoned.root / "triggers"
    pattern = _picture(folder / name)
    if attack in (*_BLENDS, *_FADED) and poisoned.alpha is None:
        raise RecordError(f"{poisoned.folder}: expected alpha in the name of a set of {attack}, found none")
    if attack in _BLENDS:
        return Trigger.blend(pattern, poisoned.alpha or 0.0, shape=facts.shape)
    stored = folder / f"mask_{name}"
    # Without a mask of its own, what is black is not covered. Of a mask the toolbox takes the first channel.
    covered = _picture(stored)[:1] / _LEVELS if stored.is_file() else (pattern > 0).any(axis=0, keepdims=True)
    mask: Floats = np.asarray(covered, dtype=np.float64)
    if attack in _FADED:
        return Trigger.blend(pattern, poisoned.alpha or 0.0, shape=facts.shape, mask=mask)
    return Trigger.patch(pattern, shape=facts.shape, mask=mask)


def _picture(file: Path) -> Floats:
    """``(3, h, w)`` in grey levels."""
    with open_image(file) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64).transpose(2, 0, 1)


def _split(folder: Path, labels: str) -> tuple[list[Path], Ints]:
    """Images ``data/N.png`` and their labels; the toolbox has two names for the file of labels."""
    file = folder / labels
    if not file.is_file():
        raise RecordError(f"{file} is missing; make the split with create_clean_set.py")
    found = read_pickle_checkpoint(file)
    if not isinstance(found, Tensor) or found.ndim != 1 or found.is_floating_point():
        raise RecordError(f"{file}: expected a tensor of (N,) whole numbers")
    images = [folder / "data" / f"{position}.png" for position in range(len(found))]
    missing = [image for image in images if not image.is_file()]
    if missing:
        raise RecordError(f"{folder}: {len(missing)} of {len(images)} images are missing; the first is {missing[0]}")
    return images, found.numpy().astype(np.int64)
