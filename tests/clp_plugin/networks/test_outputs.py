"""Where the logits are in what networks return."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from clp_plugin.errors import PairingError
from clp_plugin.networks.outputs import logits_of, tensors_in

LOGITS, MAPS, OTHER = torch.randn(2, 3), torch.randn(2, 3, 4, 4), torch.randn(2, 7)


@dataclass
class Output:
    maps: Tensor
    embedding: Tensor
    logits: Tensor | None = None


Named = namedtuple("Named", ["logits", "aux"])

OUTPUTS: dict[str, Any] = {
    "tensor": LOGITS,
    "tuple": (LOGITS, OTHER),
    "list in a tuple": ([LOGITS], None),
    "maps first": (MAPS, LOGITS),
    "dictionary": {"features": OTHER, "logits": LOGITS},
    "dictionary as of segmentation": {"aux": OTHER, "out": LOGITS},
    "dictionary of other names": {"x": LOGITS, "y": OTHER},
    "dataclass": Output(MAPS, OTHER, LOGITS),
    "namedtuple": Named(LOGITS, OTHER),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_are_found(name: str) -> None:
    assert logits_of(OUTPUTS[name]) is LOGITS


def test_all_tensors_are_found_in_order() -> None:
    assert [id(t) for t in tensors_in([Output(MAPS, OTHER), {"a": (LOGITS,)}, None, 3])] == [
        id(MAPS),
        id(OTHER),
        id(LOGITS),
    ]


def test_output_without_a_tensor_is_refused() -> None:
    with pytest.raises(PairingError, match="returns its logits, found one that returns dict"):
        logits_of({"loss": 0.5})
