"""CLP as a class in the habit of BackdoorBox's defenses, for its users' own scripts."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from clp_plugin.bench.run import make_defense
from clp_plugin.cli.console import say
from clp_plugin.defenses.base import Budget
from clp_plugin.errors import ConfigError
from clp_plugin.files.checkpoints import load_checkpoint
from clp_plugin.networks.fitting import fit_state_dict
from clp_plugin.networks.wrappers import unwrap
from clp_plugin.registry import load_catalogue
from clp_plugin.types import Mask


class CLP:
    """Prunes the channels whose Lipschitz bound is far above their layer's: ``repair()``, ``test()``, ``get_model()``.

    Works with any network and, for ``test``, any data set of BackdoorBox; ``repair`` sees no image.

    Attributes:
        model: The network; repaired in place.
        test_dataset: The images that ``test`` measures on.
        u: Prune above mean + u * std; ``"auto"``: by a trigger that is sought in the weights of a network that takes [0, 1].
        options: Other options of the method, as of ``bench defend``.
        input_shape: ``(C, H, W)``; that of the first test image if None.
        mask: The pruned channels, once ``repair`` has run.

    Source:
        Zheng, Tang, Li, Liu: Data-free backdoor removal based on channel Lipschitzness, ECCV 2022.
    """

    def __init__(
        self,
        model: nn.Module,
        test_dataset: Any = None,
        u: float | Literal["auto"] = 3.0,
        *,
        input_shape: tuple[int, int, int] | None = None,
        **options: Any,
    ) -> None:
        if input_shape is None and test_dataset is None:
            raise ConfigError("CLP: expected test_dataset, or input_shape such as (3, 32, 32), to follow the tensors")
        self.model, self.test_dataset, self.u, self.options = model, test_dataset, u, options
        self.input_shape = tuple(test_dataset[0][0].shape) if input_shape is None else input_shape
        self.mask: Mask | None = None

    def repair(self, schedule: Mapping[str, Any] | None = None) -> None:
        """Repair the network in place.

        Args:
            schedule: A schedule of BackdoorBox, of which ``test_model`` is used: a checkpoint to load first.

        Raises:
            CheckpointError: If the checkpoint does not fit; BackdoorBox itself would go on without what does not.
            ConfigError: If CLP refuses the network.
        """
        self._load(schedule or {})
        network = unwrap(self.model)
        defense, _ = make_defense(load_catalogue(), "clp", "", {"u": self.u, **self.options})
        channels, height, width = self.input_shape
        budget = Budget(
            (channels, height, width), num_classes=1, mean=(0.0,) * channels, std=(1.0,) * channels
        )  # fmt: skip
        found = defense.repair(network.eval(), budget, seed=0)
        network.load_state_dict(found.model.state_dict())
        self.mask = found.mask
        pruned = {} if found.mask is None else found.mask.indices()
        told = ", ".join(f"{len(rows)} of {name}" for name, rows in pruned.items())
        if "finding" in found.log:
            say(found.log["finding"])
        u = found.log["u"]
        say(f"CLP, u = {'none' if u is None else f'{u:g}'}: pruned {told or 'no channel'}")

    def test(self, schedule: Mapping[str, Any]) -> None:
        """Measure by ``core.utils.test``, which prints and logs; the data set stays whole, also for ASR_NoTarget.

        Args:
            schedule: A schedule of that function, with ``metric``: ``"BA"``, ``"ASR"``, ``"ASR_NoTarget"``.

        Raises:
            ConfigError: If there is no test set, or the package ``core`` cannot be imported.
            CheckpointError: If its ``test_model`` does not fit.
        """
        if self.test_dataset is None:
            raise ConfigError("CLP.test: expected the argument test_dataset of CLP, found none")
        self._load(schedule)
        try:
            measure = importlib.import_module("core.utils").test
        except ImportError as error:
            raise ConfigError(f"BackdoorBox's core.utils cannot be imported: {error}") from error
        own = {key: value for key, value in schedule.items() if key != "test_model"}
        measure(self.model, copy.copy(self.test_dataset), own)

    def get_model(self) -> nn.Module:
        """The network."""
        return self.model

    def _load(self, schedule: Mapping[str, Any]) -> None:
        if "test_model" in schedule:
            file = Path(schedule["test_model"])
            fit_state_dict(unwrap(self.model), load_checkpoint(file), where=str(file))
