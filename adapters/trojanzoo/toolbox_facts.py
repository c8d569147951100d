"""Facts on TrojanZoo 2.0.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOOLBOX = "trojanzoo"
LAUNCHER = "clp_plugin.adapters.trojanzoo.launcher"
SCRIPTS = "trojanvision/defenses/backdoor/attack_agnostic"
# Its own trainer, with the values of its own example of a defense.
_TRAINING = {"epochs": 50, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 96}
# Options of its defenses that change the network.
DEFENSES: Mapping[str, Mapping[str, Any]] = {
    "fine_pruning": {**_TRAINING, "prune_ratio": 0.95},
    "adv_train": {**_TRAINING, "pgd_alpha": 2 / 255, "pgd_eps": 8 / 255, "pgd_iter": 7},
}
# Attacks that are in its registry, and fail or ask for more when they are made or stored.
FAILING_ATTACKS: Mapping[str, str] = {
    "invisible_poison": "only with a mark as large as the image",
    "latent_backdoor": "only with --mark_random_init",
    "refool": "downloads Pascal VOC when it is made",
    "trojannet": "neither stores nor loads its trojan, which is a network of its own",
}
# Defenses that are in its registry, and ask for what it does not make.
FAILING_DEFENSES: Mapping[str, str] = {"magnet": "needs magnet.pth in the model's folder, a network trained apart"}
