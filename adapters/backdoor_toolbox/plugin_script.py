"""The program behind ``python clp_plugin_defense.py`` in a checkout: ``bench defend`` in backdoor-toolbox's habit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from clp_plugin.bench.run import make_defense, plan_defense, run_defense
from clp_plugin.cli.console import guarded, say
from clp_plugin.cli.showing import show_defense
from clp_plugin.errors import RecordError
from clp_plugin.files.checkpoints import save_weights
from clp_plugin.networks.devices import pick_device
from clp_plugin.registry import load_catalogue
from clp_plugin.types import Metrics

from .record import BackdoorToolboxRecords, network_file


def main(argv: Sequence[str], *, checkout: str) -> int:
    """Repair the network of a poisoned set, chosen by the options that the toolbox's own scripts take.

    Args:
        argv: The script's arguments.
        checkout: The toolbox's root.

    Returns:
        The exit code: 2 for a user's mistake, which is said in one line.
    """
    return guarded(lambda: _defend(_parser().parse_args(argv), Path(checkout)), debug=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python clp_plugin_defense.py",
        description="Repair the network of a poisoned set with CLP; the options that choose it are other_defense.py's.",
    )
    parser.add_argument("-dataset", default="cifar10")
    parser.add_argument("-poison_type", default="badnet")
    parser.add_argument("-poison_rate", type=float, required=True)
    parser.add_argument("-cover_rate", type=float)
    parser.add_argument("-alpha", type=float)
    parser.add_argument("-trigger")
    parser.add_argument("-u", type=float, default=3.0, help="prune above mean + u * std (default: 3)")
    parser.add_argument("-device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


def _defend(given: argparse.Namespace, root: Path) -> None:
    folder = _folder(given, root)
    record = BackdoorToolboxRecords().open(folder)
    defense, options = make_defense(load_catalogue(), "clp", record.provenance.dataset, {"u": given.u})
    run = run_defense(plan_defense(record, "clp", defense, options, device=pick_device(given.device)))
    attacked = network_file(folder)
    repaired = folder / f"defended_CLP_{attacked.name}"
    save_weights(run.repaired.model.state_dict(), repaired)
    show_defense(run)
    for name, found in (("before", run.before), ("after", run.after)):
        say(f"{name}: {_as_the_toolbox_says(found)}")
    say(f"wrote {repaired}; test_model.py measures it with -model_path {repaired.relative_to(root.absolute())}")


def _folder(given: argparse.Namespace, root: Path) -> Path:
    """The poisoned set that the options mean; nothing is taken for one that is not there."""
    place = root.absolute() / "poisoned_train_set" / str(given.dataset)
    wanted = [f"{given.poison_type}_{given.poison_rate:.3f}_"]
    wanted += [f"_alpha={given.alpha:.3f}_"] if given.alpha is not None else []
    wanted += [f"_cover={given.cover_rate:.3f}_"] if given.cover_rate is not None else []
    wanted += [f"_trigger={given.trigger}_"] if given.trigger is not None else []
    there = sorted(child.name for child in place.glob("[!.]*") if child.is_dir())
    found = [name for name in there if f"{name}_".startswith(wanted[0]) and all(part in f"{name}_" for part in wanted)]
    if len(found) != 1:
        told = "several sets" if found else "no set"
        raise RecordError(
            f"{place}: {told} of these options ({', '.join(found or there) or 'nothing'} there); say which"
        )
    return place / found[0]


def _as_the_toolbox_says(found: Metrics) -> str:
    """Counts, as ``utils.tools.test`` prints them."""
    right, fired = round((found.acc or 0) * found.n_clean), round((found.asr or 0) * found.n_triggered)
    return f"Clean ACC: {right}/{found.n_clean}, ASR: {fired}/{found.n_triggered}"
