"""The nouns of the data flow: frozen values passed from one public function to the next.

Nothing here imports torch at run time, so that reports can be drawn where torch is not installed.
Fractions lie in [0, 1]; vectors are numpy arrays; layers are named as in ``model.named_modules()``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clp_plugin.errors import ConfigError, MaskError

if TYPE_CHECKING:
    import torch
    from torch import nn

LayerKind = Literal["fused", "diagonal", "conv", "head"]
Pairing = Literal["dataflow", "registration"]
ScoreKind = Literal["paper", "relative"]
NormKind = Literal["reshaped", "exact"]
Precision = Literal["auto", "float32", "bfloat16"]
BudgetKind = Literal["none", "benign", "poisoned"]  # what a defense may see beside the model
ChoiceProtocol = Literal["defender", "oracle"]  # an oracle chooses parameters by the test set
Progress = Callable[[int, int], None]  # called with the steps done and the steps in all
_MAX_CHANNELS = 1 << 20  # of a layer; a stored mask may not make more memory than it holds
Bools = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """One score per channel of each layer, in the order of execution. Knows no data and no u.

    Attributes:
        sigma: Layer name to ``(channels,)`` float64, non-negative; larger is more suspicious.
        kinds: Layer name to kind; a layer that is not named counts as ``fused``.
        unprunable: Layers whose channels a mask cannot silence: never pruned.
        score: ``"paper"`` (CLP 4.1, 4.4) or ``"relative"`` (unchanged by a function-preserving rescale).
        norm: ``"reshaped"`` (CLP 4.1) or ``"exact"`` (the convolution operator's own norm).
        pairing: ``"dataflow"`` or ``"registration"`` (the published rule).

    Example:
        >>> import numpy as np
        >>> from clp_plugin import Scores, select
        >>> len(select(Scores({"conv": np.array([1.0, 1.0, 1.0, 9.0])}), u=1.5))
        1
    """

    sigma: Mapping[str, Floats]
    kinds: Mapping[str, LayerKind] = field(default_factory=dict)
    score: ScoreKind = "paper"
    norm: NormKind = "reshaped"
    pairing: Pairing = "dataflow"
    unprunable: frozenset[str] = frozenset()

    @property
    def heads(self) -> frozenset[str]:
        """The layers that put out the logits: listed, never pruned."""
        return frozenset(name for name, kind in self.kinds.items() if kind == "head")

    def prunable(self, kinds: Collection[LayerKind]) -> list[str]:
        """The layers of these kinds whose channels may be pruned, in the order of execution."""
        chosen = (name for name in self.sigma if self.kinds.get(name, "fused") in kinds)
        return [name for name in chosen if name not in self.unprunable]


@dataclass(frozen=True, eq=False)
class Mask:
    """The channels to prune: layer name to a bool vector, True where pruned. Data only: saves to JSON and replays.

    Attributes:
        pruned: Layer name to ``(channels,)`` bool. A layer that loses nothing may be present or absent.

    Example:
        >>> import numpy as np
        >>> from clp_plugin import Mask
        >>> one, other = Mask({"conv": np.array([True, False])}), Mask({"conv": np.array([False, True])})
        >>> len(one | other)
        2
    """

    pruned: Mapping[str, Bools]

    def __len__(self) -> int:
        return int(sum(int(v.sum()) for v in self.pruned.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.indices() == other.indices()

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __or__(self, other: Mask) -> Mask:
        """Union; both masks must agree on the width of a layer they share."""
        joined = dict(self.pruned)
        for name, vector in other.pruned.items():
            if name in joined and joined[name].shape != vector.shape:
                raise MaskError(
                    f"layer {name!r} has {joined[name].size} channels in one mask, {vector.size} in the other"
                )
            joined[name] = joined[name] | vector if name in joined else vector
        return Mask(joined)

    def __repr__(self) -> str:
        parts = [f"{name} {int(v.sum())}/{v.size}" for name, v in self.pruned.items() if v.any()]
        return f"Mask({len(self)} channels: {', '.join(parts) or 'nothing pruned'})"

    def indices(self) -> dict[str, list[int]]:
        """Layer name to the sorted indices of its pruned channels; layers that lose nothing are left out."""
        return {name: np.flatnonzero(v).tolist() for name, v in self.pruned.items() if v.any()}

    def fingerprint(self) -> str:
        """Equal for equal masks, whatever the order of the layers."""
        return hashlib.sha256(json.dumps(self.indices(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, dict[str, Any]]:
        """``{layer: {"channels": K, "pruned": [indices]}}``."""
        return {
            name: {"channels": int(v.size), "pruned": np.flatnonzero(v).tolist()} for name, v in self.pruned.items()
        }

    @staticmethod
    def from_json(data: Mapping[str, Mapping[str, Any]]) -> Mask:
        """Inverse of :meth:`to_json`.

        Raises:
            MaskError: If an entry lacks a key or an index is outside its layer.
        """
        pruned: dict[str, Bools] = {}
        for name, entry in data.items():
            try:
                if not 0 <= entry["channels"] <= _MAX_CHANNELS:
                    raise ValueError("no layer is as wide")
                vector = np.zeros(int(entry["channels"]), dtype=bool)
                if any(type(index) is not int or index < 0 for index in entry["pruned"]):  # numpy would round or wrap
                    raise ValueError("indices must be whole numbers from 0")
                vector[np.asarray(entry["pruned"], dtype=np.int64)] = True
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise MaskError(
                    f"mask of layer {name!r}: expected {{'channels': K, 'pruned': [indices below K]}}, found {entry!r}"
                ) from error
            pruned[name] = vector
        return Mask(pruned)


@dataclass(frozen=True)
class TargetRule:
    """The label that the attacker wants for a triggered image.

    Attributes:
        kind: ``"all_to_one"``: every image becomes ``target``; ``"all_to_all"``: y becomes (y + shift) mod classes.
        num_classes: Number of classes, C.
        target: The target class for all-to-one, None for all-to-all.
        shift: Step of all-to-all, 1 to C - 1.
    """

    kind: Literal["all_to_one", "all_to_all"]
    num_classes: int
    target: int | None = None
    shift: int = 1

    @staticmethod
    def parse(text: str, num_classes: int) -> TargetRule:
        """The rule that a person writes as ``"5"`` (all to one), ``"all"`` or ``"all+2"`` (all to all).

        Args:
            text: A class number, ``all``, or ``all+SHIFT``.
            num_classes: Number of classes.

        Raises:
            ConfigError: If it is anything else, or outside the classes.
        """
        found = re.fullmatch(r"(all)(?:\+(\d{1,9}))?|(\d{1,9})", text.strip())
        if found is None:
            raise ConfigError(f"target: expected a class number, `all` or `all+2`, found {text!r}")
        if found[1]:
            return TargetRule("all_to_all", num_classes, shift=int(found[2] or 1))
        return TargetRule("all_to_one", num_classes, int(found[3]))

    def __str__(self) -> str:
        """Describe the rule for people: ``"target 5"``, ``"all to all"``, ``"all to all, shift 2"``."""
        if self.kind == "all_to_one":
            return f"target {self.target}"
        return "all to all" + (f", shift {self.shift}" if self.shift != 1 else "")

    def __post_init__(self) -> None:
        if self.kind == "all_to_one" and (self.target is None or not 0 <= self.target < self.num_classes):
            raise ConfigError(
                f"target {self.target} is outside the {self.num_classes} classes; give 0 to {self.num_classes - 1}"
            )
        if self.kind == "all_to_all" and not 0 < self.shift < self.num_classes:
            raise ConfigError(
                f"all to all with shift {self.shift} among {self.num_classes} classes leaves labels as they are or goes "
                f"round; give a shift of 1 to {self.num_classes - 1}"
            )

    def wanted(self, labels: Ints) -> Ints:
        """The label ``(N,)`` that the attacker wants for images of the true labels ``(N,)``."""
        if self.kind == "all_to_one":
            return np.full_like(labels, self.target)
        return (labels + self.shift) % self.num_classes

    def counted(self, labels: Ints) -> Bools:
        """``(N,)`` bool: images whose triggered version counts for ASR (CLP 5.1.3: the true label is not the target)."""
        return np.asarray(self.wanted(labels) != labels)


class ImageSet(Protocol):
    """Images with true labels, decoded on demand as the model wants them."""

    @property
    def labels(self) -> Ints:
        """True labels, ``(N,)`` int64."""
        ...

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Normalized images in order, each batch ``(B, C, H, W)`` float32 on the CPU."""
        ...

    def take(self, indices: Ints) -> ImageSet:
        """The images at these positions, in this order."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class TriggeredSet:
    """Triggered test images paired one by one with the clean images they were made from.

    Attributes:
        images: The triggered images; ``labels`` are the *true* ones.
        clean_index: ``(M,)`` int64, position of each image's clean twin in ``Record.clean``.
    """

    images: ImageSet
    clean_index: Ints


@dataclass(frozen=True)
class Provenance:
    """The origin of a record; two outcomes of different provenance never merge in a table.

    Attributes:
        toolbox: Name in the catalogue.
        path: The record's folder; empty for a record made in memory.
        sha256: Hash of the attacked weights.
        attack: The attack's name.
        dataset: The data set's name.
        architecture: Source and name, ``SOURCE:NAME``.
        poison_rate: Share of the training images that was poisoned; NaN where nobody knows.
        seed: Seed of the attack.
        mean: Mean of the model's normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of the model's normalization, per channel, on the [0, 1] scale.
        toolbox_commit: Commit of the toolbox's checkout, where there is one.
        architecture_options: The options that the architecture was built with.
    """

    toolbox: str
    path: str
    sha256: str
    attack: str
    dataset: str
    architecture: str
    poison_rate: float
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    toolbox_commit: str = ""
    architecture_options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The attributes by name, as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Record:
    """One attacked model with all that is needed to judge it.

    Attributes:
        model: The attacked network in eval mode, on the CPU; takes normalized images.
        input_shape: Shape of one input, ``(C, H, W)``.
        clean: Clean test images.
        triggered: Triggered test images; only those that count for ASR.
        target: The attacker's rule.
        benign: Benign images that a defense with a budget may draw from; disjoint from training and test images.
        poisoned_training: A part of the training set as it was trained on, poison and all, for a defense that needs one
            (EP); labels are those trained on. None where the toolbox did not keep it.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from clp_plugin import record_from
        >>> from clp_plugin.records.triggers import Trigger
        >>> white = Trigger.patch(np.full((1, 2, 2), 255.0), shape=(3, 4, 4), at="bottom-right")
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> record = record_from(model, np.zeros((6, 3, 4, 4), np.uint8), np.arange(6) % 2, trigger=white, target=0)
        >>> record.input_shape, len(record.clean), len(record.triggered.images)
        ((3, 4, 4), 6, 3)
    """

    model: nn.Module
    input_shape: tuple[int, int, int]
    clean: ImageSet
    triggered: TriggeredSet
    target: TargetRule
    benign: ImageSet
    provenance: Provenance
    poisoned_training: ImageSet | None = None

    @property
    def folder(self) -> Path:
        """The record's folder; the current one for a record made in memory."""
        return Path(self.provenance.path)


@dataclass(frozen=True)
class Metrics:
    """The measurements of an evaluation, as fractions in [0, 1].

    Attributes:
        acc: Share of clean test images classified as their true label.
        asr: Share of counted triggered images classified as the attacker wants.
        ra: Share of the same images classified as their true label.
        base_rate: Share of the clean twins of those images that the model already classifies as the attacker wants.
        n_clean: Number of clean test images.
        n_triggered: Number of counted triggered images.
    """

    acc: float
    asr: float
    ra: float
    base_rate: float
    n_clean: int
    n_triggered: int

    def to_json(self) -> dict[str, float | int]:
        """The attributes by name, as plain JSON values."""
        return asdict(self)


def defense_effectiveness(before: Metrics, after: Metrics) -> float:
    """DER in [0, 1]: (max(0, drop of ASR) - max(0, drop of ACC) + 1) / 2."""
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2
