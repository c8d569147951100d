"""The program behind ``python defense/clp_plugin.py`` in a checkout: ``bench defend`` in BackdoorBench's habit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clp_plugin.adapters.driving.scripts import read_configuration
from clp_plugin.cli.console import guarded, say

_TOOLBOX = "backdoorbench"
# Options that loops over all of the toolbox's defenses pass, and that mean nothing to a data-free method or to our loader.
_UNUSED = (
    "model", "dataset_path", "batch_size", "num_workers", "amp", "pin_memory", "non_blocking", "prefetch", "epochs", "lr",
    "checkpoint_load", "checkpoint_save", "log", "lr_scheduler", "client_optimizer", "sgd_momentum", "wd", "frequency_save",
)  # fmt: skip


def main(argv: Sequence[str], *, checkout: str) -> int:
    """Run one method of this plugin on a record of the checkout.

    Args:
        argv: The script's arguments.
        checkout: The toolbox's root.

    Returns:
        The exit code: 2 for a user's mistake, which is said in one line.
    """
    return guarded(lambda: _defend(argv, Path(checkout)), debug="--debug" in argv)


def _defend(argv: Sequence[str], root: Path) -> None:
    from clp_plugin.cli.commands.defend import defend_record  # torch: not needed for --help
    from clp_plugin.cli.requests import DefendRequest

    given = _parser().parse_args([argument for argument in argv if argument != "--debug"])
    unused = [name for name in _UNUSED if getattr(given, name) is not None]
    if unused:
        say(f"not used here: {', '.join(f'--{name}' for name in unused)}")
    settings = _settings(given, root)
    method = str(settings["method"])
    u = str(settings["u"]) if method == "clp" and settings.get("u") is not None else None
    defend_record(
        DefendRequest(
            record=Path(given.result_file), method=method, u=u, parity=bool(settings.get("parity")), toolbox=_TOOLBOX,
            root=root, sweep=_range(settings) if method == "clp" else None, seed=int(settings["random_seed"]),
            device=str(settings["device"]), force=given.force,
        ),
        as_json=False,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python defense/clp_plugin.py",
        description="Repair the model of a record with a method of clp-plugin; results in record/NAME/defense/clp_plugin.",
    )
    parser.add_argument("--result_file", required=True, metavar="RECORD", help="its name in record/")
    parser.add_argument("--yaml_path", type=Path, help="default: config/defense/clp_plugin/DATASET.yaml")
    parser.add_argument("--dataset", help="whose yaml to take; the record itself says which data set it is on")
    parser.add_argument("--method", help="a method of `bench list defenses`; default clp")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--random_seed", type=int)
    parser.add_argument("--u", help="prune above mean + u * std; auto: by a trigger sought in the weights")
    parser.add_argument("--u_min", type=float)
    parser.add_argument("--u_max", type=float)
    parser.add_argument("--u_num", type=int, help="values of u in the sweep; 0 skips it")
    parser.add_argument("--parity", action="store_true", default=None, help="prune what the published code prunes")
    parser.add_argument("--force", action="store_true", help="replace another result")
    for name in _UNUSED:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser


def _settings(given: argparse.Namespace, root: Path) -> dict[str, Any]:
    """The yaml file's values; those on the command line win."""
    folder = root / "config" / "defense" / "clp_plugin"
    named = folder / f"{given.dataset}.yaml"
    path = given.yaml_path or (named if named.is_file() else folder / "config.yaml")
    defaults = {"method": "clp", "device": "auto", "random_seed": 0}
    return {
        **defaults,
        **read_configuration(path),
        **{key: value for key, value in vars(given).items() if value is not None},
    }


def _range(settings: dict[str, Any]) -> str | None:
    first, last, count = (float(settings.get(key, 0)) for key in ("u_min", "u_max", "u_num"))
    if count < 1:
        return None
    step = (last - first) / max(count - 1, 1)
    return ",".join(f"{first + i * step:.10g}" for i in range(int(count)))
