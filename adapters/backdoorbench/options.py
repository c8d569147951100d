"""Translation of the options of ``bench attack`` into those of the toolbox's scripts."""

from __future__ import annotations

from collections.abc import Mapping

from clp_plugin.errors import ConfigError, unknown_name

_SAME = {
    "dataset": "dataset",
    "model": "model",
    "poison_rate": "pratio",
    "epochs": "epochs",
    "batch_size": "batch_size",
    "lr": "lr",
    "weight_decay": "wd",
}


def attack_options(given: Mapping[str, object]) -> dict[str, object]:
    """Translate options of ours that were given.

    Args:
        given: Keys of ``dataset, model, target, poison_rate, epochs, batch_size, lr, weight_decay``; ``target`` is a class
            or ``"all"`` for all-to-all (the toolbox's: y becomes (y + 1) mod C).

    Raises:
        ConfigError: If the toolbox's scripts have no such option.
    """
    translated: dict[str, object] = {}
    for name, value in given.items():
        if name == "target":
            one = {"attack_label_trans": "all2one", "attack_target": value}
            translated |= {"attack_label_trans": "all2all"} if value == "all" else one
        elif name in _SAME:
            translated[_SAME[name]] = value
        else:
            raise ConfigError(f"backdoorbench: {unknown_name('option of its attacks', name, [*_SAME, 'target'])}")
    return translated
