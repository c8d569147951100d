"""Data sets that the toolbox would download: a script that tries to, without a network, ends far from saying why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clp_plugin.errors import RecordError

from .datasets import DatasetFacts

_MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def require_no_download(facts: DatasetFacts, root: Path) -> None:
    """Refuse files that a script of the toolbox would not take, but try to replace by a download.

    Args:
        facts: The toolbox's facts about the data set.
        root: The data set's folder.

    Raises:
        RecordError: If files of the data set are missing, or torchvision finds other checksums than those published.
    """
    from torchvision.datasets import cifar

    if not all(cifar.check_integrity(str(root / file), md5) for file, md5 in _checked(facts.name)):
        raise RecordError(
            f"{root}: the toolbox would not take the files there for {facts.name} but try to download it: some are missing, or "
            "are not the published ones, by torchvision's checksums; put the published files there"
        )
    if facts.name == "tiny" and not (root / "tiny-imagenet-200" / "train").is_dir():
        raise RecordError(f"{root}: no tiny-imagenet-200/train; the toolbox would try to download it; put it there")


def _checked(dataset: str) -> Iterator[tuple[Path, str | None]]:
    """Files below the data set's folder, each with its MD5, or None for one that only has to be there."""
    from torchvision.datasets import cifar

    if dataset == "mnist":
        yield from ((Path("MNIST", "raw", file), None) for file in _MNIST)
    elif dataset in ("cifar10", "cifar100"):
        kind = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}[dataset]
        files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        yield from ((Path(kind.base_folder, file), md5) for file, md5 in files)
