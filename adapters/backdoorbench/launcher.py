"""The child process in which one of the toolbox's unmodified scripts runs, or all are tried.

``python -m clp_plugin.adapters.backdoorbench.launcher [--trust] [--fast-cpu] run SCRIPT ARGUMENT...`` with the checkout, or a
workspace that looks like it, as the current folder; ``... check SCRIPT...`` imports each script and prints a JSON object
``{script: error or null}`` as the last line of standard output.
"""

from __future__ import annotations

import itertools
import runpy
import sys

from clp_plugin.adapters.backdoorbench.bridges import bridge_everything
from clp_plugin.adapters.driving.attempts import report
from clp_plugin.adapters.driving.lifeline import end_with_parent
from clp_plugin.networks.memory import keep_freed_memory


def main(argv: list[str]) -> None:
    """Install the bridges, then run or try scripts."""
    end_with_parent()
    flags = set(itertools.takewhile(lambda argument: argument.startswith("--"), argv))
    task, *rest = argv[len(flags) :]
    attacking = any(name.startswith("attack/") for name in rest[:1])
    if "--fast-cpu" in flags:
        keep_freed_memory()
    bridge_everything(trust="--trust" in flags, fast_cpu="--fast-cpu" in flags, pretrained=attacking)
    if task == "run":
        sys.argv = rest
        runpy.run_path(rest[0], run_name="__main__")
    else:
        report(rest, lambda script: runpy.run_path(script, run_name="tried"))


if __name__ == "__main__":
    main(sys.argv[1:])
