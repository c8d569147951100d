"""``bench toolbox``: install, check, register."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from clp_plugin.cli.console import emit_json, say, show_table
from clp_plugin.config import data_folder, remember_toolbox
from clp_plugin.records.adapter import Capability, ChecksScripts, InstallsToolbox, RegistersPlugin, RunsScripts, require
from clp_plugin.records.exchange import CheckoutState
from clp_plugin.records.opening import load_adapter
from clp_plugin.registry import load_catalogue


def install(
    name: str, *, source: str | None, ref: str | None, destination: Path | None, registry: Path | None, as_json: bool
) -> None:
    """Clone, and remember where."""
    toolbox = _toolbox(name, InstallsToolbox, registry)
    root = toolbox.install(destination or data_folder() / "toolboxes" / name, source=source, ref=ref)
    settings = remember_toolbox(name, root)
    if as_json:
        emit_json({"root": str(root), "config": str(settings)})
    else:
        say(f"{name} is in {root}; noted in {settings}. Next: bench toolbox check {name}")


def check(name: str, *, root: Path | None, registry: Path | None, as_json: bool) -> None:
    """Print what the checkout is, and which of its scripts start here."""
    state = _toolbox(name, ChecksScripts, registry).check(root=root)
    pip = pip_line(state)
    if as_json:
        emit_json({**asdict(state), "root": str(state.root), "pip": pip})
        return
    show_table(
        f"{name} at {state.root} (found by {state.found_by}), commit {state.commit or 'unknown'}",
        ("script", "kind", "starts here", "why not"),
        [
            (script.name, script.kind, "no" if script.problem else "yes", script.problem)
            for script in state.scripts
        ],
    )  # fmt: skip
    say(_registered(name, state))
    if pip:
        say(f"install what is missing: {pip}")


def _registered(name: str, state: CheckoutState) -> str:
    if state.registered is None:
        return f"this plugin is in its registry for one script at a time: bench toolbox register {name} -- SCRIPT ..."
    if state.registered:
        return "this plugin is registered in it"
    return f"this plugin is not registered in it: bench toolbox register {name}"


def register(name: str, *, root: Path | None, remove: bool, registry: Path | None, as_json: bool) -> None:
    """Add this plugin to the checkout, or take it out."""
    files = _toolbox(name, RegistersPlugin, registry).register(root=root, remove=remove)
    if as_json:
        emit_json({"removed" if remove else "written": [str(path) for path in files]})
        return
    for path in files:
        say(f"{'deleted' if remove else 'wrote'} {path}")
    if not files:
        say("nothing to do: this plugin is not registered there")
    elif not remove:
        say(f"run it: python {files[0]} --help")


def run_script(name: str, script: Path, arguments: Sequence[str], *, root: Path | None, registry: Path | None) -> None:
    """Run a script of a toolbox that has a registry in memory, with this plugin in it."""
    _toolbox(name, RunsScripts, registry).run_script(script, arguments, root=root)


def pip_line(state: CheckoutState) -> str:
    """The command that installs all missing packages, or nothing."""
    missing = sorted({script.missing for script in state.scripts if script.missing})
    return f"{sys.executable} -m pip install {' '.join(missing)}" if missing else ""


def _toolbox(name: str, capability: type[Capability], registry: Path | None) -> Capability:
    return require(load_adapter(load_catalogue(registry), name), capability, toolbox=name)
