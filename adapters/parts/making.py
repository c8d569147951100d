"""Make a record from parts: find out what nobody said, hash what is used, and write it down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from clp_plugin.config import remember_own_code
from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import staged_folder
from clp_plugin.networks.guessing import channels_taken
from clp_plugin.networks.loading import LoadedNetwork, load_network
from clp_plugin.records.parts import classes_of
from clp_plugin.store.outcomes import versions
from clp_plugin.types import Ints

from ..image_sets.stored_images import LabelledImages, read_labelled
from .copies import copied
from .description import (
    Description,
    NetworkParts,
    Part,
    TriggerKind,
    TriggerParts,
    hash_of,
    names_file,
    read_description,
    write_description,
)
from .pictures import pair
from .record import PartsAdapter
from .request import PartsRequest, Shape


def make_record(
    request: PartsRequest, out: Path, *, adapter: PartsAdapter | None = None, force: bool = False
) -> LoadedNetwork:
    """Write a record of parts, or describe one of another toolbox.

    Args:
        request: The parts that it is made of.
        out: The record's folder. With an adapter whose records lie beside their checkpoints it may be the checkpoint's own;
            then the description is all that is written.
        adapter: The adapter that will open the record; that of records of parts if None.
        force: Replace another record, with all that was stored below it; beside a checkpoint only its description.

    Returns:
        The network, with what was taken, adapted and guessed.

    Raises:
        ConfigError: If options contradict each other, or ``out`` holds something else.
        RecordError: If images or triggers cannot be read, or do not fit each other.
        CheckpointError: If the weights cannot be read safely or do not fit.
    """
    adapter = adapter or PartsAdapter()
    request = adapter.completed(request)
    kind = _trigger_kind(request)
    images = read_labelled(request.images, request.labels)
    network, shape = _network(request, images)
    description = _describe(request, _trigger(request, kind, images, shape, adapter), images, network, shape)
    beside = adapter.beside_checkpoint and out.resolve() == request.checkpoint.parent.resolve()
    if beside:
        description = _movable(description, out)
    if description.network.code is not None:
        remember_own_code(description.network.code.sha256, description.network.code.below(out))
    if beside and request.copy:
        raise ConfigError(f"--copy: {out} is the toolbox's own folder; give another with --out")
    if _is_made_already(out, description, adapter, beside=beside, force=force):
        return network
    # Nothing is stored that does not open.
    if beside:
        adapter.opened(out, description, trust=request.trust)
        write_description(out / adapter.description, description)
        return network
    with staged_folder(out) as place:
        stored = copied(place, description, images) if request.copy else description
        adapter.opened(place, stored, trust=request.trust)
        write_description(place / adapter.description, stored)
    return network


def draw(count: int, *, n_test: int | None, n_benign: int, seed: int) -> tuple[Ints, Ints]:
    """Sorted positions of test and of benign images among ``count``; no image is both.

    Raises:
        ConfigError: If there are not so many.
    """
    wanted = count - n_benign if n_test is None else n_test
    if n_benign < 0 or wanted < 1 or wanted + n_benign > count:
        raise ConfigError(
            f"{count} images cannot give {wanted} for test (--n-test) and {n_benign} for the benign budget (--n-benign); "
            "give at least 1 for test, and no more together than there are"
        )
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[n_benign : n_benign + wanted]), np.sort(order[:n_benign])


def _trigger_kind(request: PartsRequest) -> TriggerKind:
    if (request.trigger is None) == (request.triggered is None):
        raise ConfigError(
            "expected one of --trigger (a picture that is put on the images) and --triggered (images that carry it already)"
        )
    if request.triggered is not None:
        if request.trigger_mask or request.at or request.blend is not None or request.add:
            raise ConfigError(
                "--trigger-mask, --at, --blend and --add put on a --trigger; leave them out with --triggered"
            )
        return "triggered"
    if request.add and request.blend is not None:
        raise ConfigError("--add and --blend exclude each other: a pattern is added to the image, or mixed with it")
    return "addition" if request.add else "patch" if request.blend is None else "blend"


def _network(request: PartsRequest, images: LabelledImages) -> tuple[LoadedNetwork, Shape]:
    """The network, and the shape of the images as it takes them."""
    sizes = images.images.sizes() if request.input_shape is None else set()
    held = images.images.pixels
    size = next(iter(sizes)) if len(sizes) == 1 else None
    shape = request.input_shape or (None if size is None else (3 if held is None else held.shape[1], *size))
    network = load_network(
        request.checkpoint,
        arch=request.arch,
        key=request.key,
        options=request.arch_options,
        num_classes=request.num_classes,
        input_shape=shape,
        trust=request.trust,
        strict=request.strict,
    )
    if request.input_shape is None and held is None and size is not None:
        return network, (channels_taken(network.model, *size) or 3, *size)
    return network, network.input_shape


def _describe(
    request: PartsRequest, trigger: TriggerParts, images: LabelledImages, network: LoadedNetwork, shape: Shape
) -> Description:
    test, benign = draw(len(images.labels), n_test=request.n_test, n_benign=request.n_benign, seed=request.seed)
    code, name = _code(request.arch)
    channels = shape[0]
    return Description(
        network=NetworkParts(
            checkpoint=_file(request.checkpoint),
            architecture=name,
            num_classes=classes_of(network.model, shape),
            code=code,
            options=dict(request.arch_options),
            key=request.key,
            strict=request.strict,
        ),
        images=Part(_absolute(request.images), images.digest(np.concatenate([test, benign]))),
        labels=None if request.labels is None else _file(request.labels),
        trigger=trigger,
        target=_target(request),
        input_shape=shape,
        mean=_whole_length(request.mean, 0.0, channels),
        std=_whole_length(request.std, 1.0, channels),
        test=tuple(test.tolist()),
        benign=tuple(benign.tolist()),
        seed=request.seed,
        versions=versions(),
        attack=request.attack,
        dataset=request.dataset,
        poison_rate=request.poison_rate,
    )


def _target(request: PartsRequest) -> str:
    if request.target is None:
        raise ConfigError("expected --target: the class that the attacker wants, all, or all+SHIFT")
    return request.target


def _movable(description: Description, folder: Path) -> Description:
    """The same description, in which what lies in the folder goes with it."""

    def own(part: Part) -> Part:
        return replace(part, path=Path(part.path).name) if Path(part.path).parent == folder.absolute() else part

    network, labels, trigger = description.network, description.labels, description.trigger
    return replace(
        description,
        network=replace(
            network, checkpoint=own(network.checkpoint), code=None if network.code is None else own(network.code)
        ),
        images=own(description.images),
        labels=None if labels is None else own(labels),
        trigger=replace(
            trigger, picture=own(trigger.picture), mask=None if trigger.mask is None else own(trigger.mask)
        ),
    )


def _trigger(
    request: PartsRequest, kind: TriggerKind, images: LabelledImages, shape: Shape, adapter: PartsAdapter
) -> TriggerParts:
    """The parts of the trigger, once it has been put together without complaint."""
    if request.triggered is not None:
        _, stored = pair(images, request.triggered, shape)
        digest = stored.digest(np.arange(len(stored)))
        return TriggerParts(kind, Part(_absolute(request.triggered), digest))
    picture = request.trigger or Path()
    mask = None if request.trigger_mask is None else _file(request.trigger_mask)
    parts = TriggerParts(kind, _file(picture), mask, request.at, request.blend)
    adapter.trigger_of(parts, Path(), shape)
    return parts


def _whole_length(given: tuple[float, ...] | None, usual: float, channels: int) -> tuple[float, ...]:
    return (usual,) * channels if given is None else given * channels if len(given) == 1 else given


def _code(arch: str | None) -> tuple[Part | None, str | None]:
    """The user's own file that builds the network, if it is one, and the architecture's name."""
    if arch is None or not names_file(arch):
        return None, arch
    source, _, name = arch.rpartition(":")
    return _file(Path(source)), name


def _file(path: Path) -> Part:
    return Part(_absolute(path), hash_of(path))


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _is_made_already(out: Path, description: Description, adapter: PartsAdapter, *, beside: bool, force: bool) -> bool:
    """Whether the same record stands there already.

    Raises:
        ConfigError: If something else does, and must stay.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return False
    if not (out / adapter.description).is_file():
        if beside:
            return False
        raise ConfigError(f"{out} holds files that `bench record` did not write; choose another folder with --out")
    earlier = replace(read_description(out / adapter.description), versions=description.versions)
    if earlier.to_json() == description.to_json():
        return True
    if not force:
        raise ConfigError(
            f"{out} holds another record; give --force to replace it with all that is stored below it, or another --out"
        )
    return False
