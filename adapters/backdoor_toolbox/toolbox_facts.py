"""The facts on backdoor-toolbox: where its files are, and what its configuration says, read without running it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_plugin.errors import RecordError
from clp_plugin.files.reading import read_text

from ..driving.checkout import CheckoutFacts

BACKDOOR_TOOLBOX = CheckoutFacts(
    name="backdoor_toolbox",
    title="backdoor-toolbox",
    variable="BACKDOOR_TOOLBOX_ROOT",
    marks=("config.py", "other_defense.py", "other_defenses_tool_box", "poison_tool_box"),
    source="https://github.com/vtu81/backdoor-toolbox",
    tested="9d4d909f25df481dba12b8e8c20c0812b6b1910b",
    # Networks and pictures that nothing here needs, and that some mirrors lack.
    left_out=("/models/", "/assets/"),
)

# The script that we add to it.
SCRIPT = "clp_plugin_defense.py"
LAUNCHER = "clp_plugin.adapters.backdoor_toolbox.launcher"
# Its defenses that change the network and run on records: their modules in its folder of defenses, and the options that its
# own script gives them for CIFAR-10.
MODULES: Mapping[str, str] = {"FP": "fine_pruning", "NAD": "neural_attention_distillation", "ANP": "ANP"}
DEFENSES: Mapping[str, Mapping[str, Any]] = {
    "FP": {"prune_ratio": 0.99, "finetune_epoch": 100, "max_allowed_acc_drop": 0.1},
    "NAD": {"teacher_epochs": 10, "erase_epochs": 20},
    "ANP": {
        "lr": 0.2, "anp_eps": 0.4, "anp_steps": 1, "anp_alpha": 0.2, "nb_iter": 2000, "print_every": 500,
        "pruning_by": "threshold", "pruning_max": 0.90, "pruning_step": 0.05, "max_CA_drop": 0.1,
    },
}  # fmt: skip
ORACLES: Mapping[str, str] = {
    "FP": "stops pruning by its accuracy on the clean test images",
    "ANP": "learns its masks on the clean test images, and stops pruning by its accuracy on them",
}


@dataclass(frozen=True)
class DatasetFacts:
    """How the toolbox treats a data set.

    Attributes:
        num_classes: Number of classes.
        shape: ``(C, H, W)`` of the images.
        mean: Mean of its normalization, per channel, on the [0, 1] scale.
        std: Standard deviation of its normalization, per channel, on the [0, 1] scale.
    """

    num_classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


DATASETS: Mapping[str, DatasetFacts] = {
    "cifar10": DatasetFacts(10, (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "gtsrb": DatasetFacts(43, (3, 32, 32), (0.3337, 0.3064, 0.3171), (0.2672, 0.2564, 0.2629)),
}
# What the configuration may name as a network, and what builds the same here.
NETWORKS: Mapping[str, str] = {"resnet.ResNet18": "builtin:resnet18"}


@dataclass(frozen=True)
class Configuration:
    """What ``config.py`` of a checkout says.

    Attributes:
        file: The file, for messages.
        values: The dictionaries of plain values in it, by name.
        networks: Data set to the expression that names its network.
    """

    file: Path
    values: Mapping[str, Any]
    networks: Mapping[str, str]

    def of(self, name: str, *keys: str) -> Any:
        """The entry of a dictionary.

        Raises:
            RecordError: If there is none.
        """
        found = self.values.get(name)
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is None:
            raise RecordError(f"{self.file}: expected {name}{''.join(f'[{key!r}]' for key in keys)}, found none")
        return found


def read_configuration(root: Path) -> Configuration:
    """Read ``config.py`` of a checkout as text; its users edit it, so nothing in it is taken for granted.

    Raises:
        RecordError: If it is missing or no Python.
    """
    file = root / "config.py"
    try:
        tree = ast.parse(read_text(file, raises=RecordError))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RecordError(f"{file}: cannot be read as Python: {error}; is the checkout whole?") from error
    values: dict[str, Any] = {}
    networks: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name == "arch" and isinstance(node.value, ast.Dict):
                entries = zip(node.value.keys, node.value.values, strict=True)
                networks = {ast.literal_eval(key): ast.unparse(value) for key, value in entries if key is not None}
                continue
            try:
                values[name] = ast.literal_eval(node.value)
            except (ValueError, TypeError):
                continue
    return Configuration(file, values, networks)
