"""Values that core and adapters hand to each other: records listed, runs asked for, results read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clp_plugin.registry import Catalogue
from clp_plugin.types import Progress, Provenance

if TYPE_CHECKING:
    from torch import nn

# Images of the poisoned training set that a record offers. EP, which asks for a batch of it, was published with 500.
TRAINING_SAMPLE = 500


@dataclass(frozen=True)
class RecordListing:
    """One line of ``bench list records``.

    Attributes:
        path: The record's folder.
        summary: Attack, dataset and architecture, for people; for an incomplete record, what is missing.
        complete: Whether :meth:`ReadsRecords.open` can open it.
        toolbox: Name in the catalogue of the toolbox whose record it is; filled in by whoever asked its adapter.
    """

    path: Path
    summary: str
    complete: bool
    toolbox: str = ""


@dataclass(frozen=True)
class RecordedNetwork:
    """The network of a record without its images.

    Attributes:
        model: The attacked network, in evaluation mode.
        input_shape: Shape ``(C, H, W)`` of one input.
        provenance: Where the record comes from.
    """

    model: nn.Module
    input_shape: tuple[int, int, int]
    provenance: Provenance


@dataclass(frozen=True)
class RunRequest:
    """How one of a toolbox's own scripts is to run.

    Attributes:
        options: Options of the script, as its own command line names them, e.g. ``{"epochs": 5}``.
        root: The toolbox's checkout; found by the adapter if None.
        device: Name of the device, such as ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        seed: Seed that the script is started with.
        time_limit: Seconds after which it is stopped, or None.
        force: Replace an earlier result.
        trust: Let the script load pickles that run code.
        fast_cpu: bfloat16 and channels-last where the script asks for mixed precision and there is no GPU.
        report: Called with each line that the script prints, and with remarks of the adapter.
        progress: Called with the steps done and in all by an adapter that counts them.
        reuse: For attacks: take the record of these very settings if it is there already.
        catalogue: For attacks: the catalogue of what is on offer, for a toolbox whose attacks others may add to.
        destination: For defenses: the folder for the result, so that several runs of one method stand side by side; where the
            toolbox itself puts it if None.
    """

    options: Mapping[str, object] = field(default_factory=dict)
    root: Path | None = None
    device: str = "cpu"
    seed: int = 0
    time_limit: float | None = None
    force: bool = False
    trust: bool = False
    fast_cpu: bool = False
    report: Callable[[str], object] = lambda line: None
    progress: Progress | None = None
    reuse: bool = False
    catalogue: Catalogue | None = None
    destination: Path | None = None


@dataclass(frozen=True)
class ToolboxResult:
    """The result that a toolbox's own defense left behind, read back.

    Attributes:
        model: The repaired network, rebuilt by us, in eval mode on the CPU.
        folder: The folder of the toolbox's files.
        reported: ``acc``, ``asr``, ``ra`` in [0, 1] as the script itself measured them; what it did not say is absent.
        seconds: Wall-clock time of the script, loading and its own evaluations included; 0 if not known.
        budget: The data that it saw: ``"none"``, ``"benign:250"``, ``"poisoned:..."``.
        oracle: How test or triggered images took part in choosing a parameter; empty where they did not.
        options: The options it ran with, as far as known.
        log: File of what it printed, or None if not known.
        commit: The checkout's commit, or empty.
    """

    model: nn.Module
    folder: Path
    reported: Mapping[str, float]
    seconds: float
    budget: str
    oracle: str
    options: Mapping[str, object]
    log: Path | None = None
    commit: str = ""


@dataclass(frozen=True)
class ScriptState:
    """Whether one of a toolbox's scripts starts here.

    Attributes:
        kind: Kind of the script: ``"defense"`` or ``"attack"``.
        name: The name that ``--method`` takes.
        problem: Empty if it starts.
        missing: The package to install, if that is the problem.
    """

    kind: str
    name: str
    problem: str = ""
    missing: str = ""


@dataclass(frozen=True)
class CheckoutState:
    """The findings of ``bench toolbox check``.

    Attributes:
        root: The checkout's folder.
        found_by: How it was found: ``--root``, an environment variable, the configuration file, the current folder.
        commit: The checkout's commit, with ``+changes`` if files differ; empty if it is not a git checkout.
        scripts: One entry a script.
        registered: Whether this plugin is registered in it; None where it is registered for one script at a time.
    """

    root: Path
    found_by: str
    commit: str
    scripts: Sequence[ScriptState]
    registered: bool | None


@dataclass(frozen=True)
class ToolboxPresence:
    """What is known of a toolbox on this machine without starting or importing anything of it.

    Attributes:
        root: The folder of the checkout or of the installed package.
        found_by: How it was found: ``--root``, an environment variable, the configuration file, the current folder.
        version: Release of the package, or commit of the checkout; empty if neither is known.
        runs: What of it runs, or is read, a phrase each.
        fails: What of it does not run, with the reason.
    """

    root: Path
    found_by: str
    version: str
    runs: Sequence[str]
    fails: Mapping[str, str]
