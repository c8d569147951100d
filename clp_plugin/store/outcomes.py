"""One JSON file per outcome: what ran, on what, with what result. Holds no tensors; imports no torch."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import write_json_atomically
from clp_plugin.files.locks import finished
from clp_plugin.files.reading import parse_json, read_text
from clp_plugin.types import ChoiceProtocol, Mask, Metrics, Provenance, defense_effectiveness

SCHEMA_VERSION: Literal[1] = 1
_VERSIONED = ("clp-plugin", "torch", "torchvision", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of what runs here, from the metadata of the installed packages: name to version or ``"unknown"``."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _VERSIONED:
        try:
            found[package.replace("-", "_")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # an uninstalled checkout has no metadata of its own
            found[package.replace("-", "_")] = "unknown"
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class StoredMetrics(BaseModel):
    """:class:`clp_plugin.types.Metrics` as stored; fractions in [0, 1], None where there was nothing to measure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    acc: float | None = Field(ge=0, le=1)
    asr: float | None = Field(ge=0, le=1)
    ra: float | None = Field(ge=0, le=1)
    base_rate: float | None = Field(ge=0, le=1)
    n_clean: int = Field(ge=0)
    n_triggered: int = Field(ge=0)

    @field_validator("acc", "asr", "ra", "base_rate", mode="before")
    @classmethod
    def _nothing_measured(cls, value: object) -> object:
        return None if isinstance(value, float) and math.isnan(value) else value


class Outcome(BaseModel):
    """The result of one method on one record.

    Attributes:
        method: Name of the defense or attack in the catalogue, or in its toolbox.
        implementation: Owner of the code that ran: ``"clp_plugin"``, or the toolbox, e.g. ``"backdoorbench"``.
        options: Options of the method, as they were used.
        command: The command line, or what a library call amounts to.
        seed: The seed all randomness came from.
        device: The device that it ran on, e.g. ``"cpu"``.
        seconds: Time of the method itself, without loading and evaluation.
        budget: ``"none"``, or how many benign images it was allowed, e.g. ``"benign:500"``.
        protocol: ``"defender"``, or ``"oracle"`` if a test or triggered image took part in choosing a parameter.
        status: How it ended: ``"ok"`` or ``"failed"``.
        error: The reason why it failed, if it did.
        provenance: The record's :meth:`~clp_plugin.types.Provenance.to_json`, and the attacker's rule as ``target``; empty for
            a lone checkpoint.
        before: Metrics of the attacked model.
        after: Metrics of the repaired model.
        reported: ``acc``, ``asr``, ``ra`` in [0, 1] as the toolbox's own script measured them; None for our own code.
        der: Defense effectiveness rating in [0, 1].
        mask: :meth:`~clp_plugin.types.Mask.to_json`.
        weights: Path of the repaired weights, relative to the outcome's folder where it lies below it.
        log: Anything else worth keeping, as plain data.
        versions: Package to version.
        created: Time of its end, ISO 8601, UTC.
        schema_version: Version of this file format.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    implementation: str = "clp_plugin"
    options: dict[str, Any] = {}
    command: str
    seed: int | None
    device: str
    seconds: float = Field(ge=0)
    budget: str = "none"
    protocol: Literal["defender", "oracle"] = "defender"
    status: Literal["ok", "failed"] = "ok"
    error: str | None = None
    provenance: dict[str, Any] = {}
    before: StoredMetrics | None = None
    after: StoredMetrics | None = None
    reported: dict[str, float] | None = None
    der: float | None = Field(default=None, ge=0, le=1)
    mask: dict[str, dict[str, Any]] | None = None
    weights: str | None = None
    log: dict[str, Any] = {}
    versions: dict[str, str] = Field(default_factory=versions)
    created: str = Field(default_factory=_now)
    schema_version: Literal[1] = SCHEMA_VERSION

    @model_validator(mode="after")
    def _a_failure_says_why(self) -> Outcome:
        if (self.status == "failed") != bool(self.error):
            raise ValueError("a failed outcome needs its error, and only a failed one has it")
        return self

    def has_options(self, options: Mapping[str, Any]) -> bool:
        """Whether these were its options, as a file tells them: there a tuple is a list."""
        return bool(self.model_dump(mode="json")["options"] == json.loads(json.dumps(dict(options))))

    @property
    def pruned(self) -> int | None:
        """Number of pruned channels, None if no mask was made."""
        return None if self.mask is None else sum(len(layer["pruned"]) for layer in self.mask.values())

    @property
    def images_apart(self) -> dict[str, int]:
        """Metric to the number of test images on which the toolbox's own number and ours differ; of those that it told."""
        if self.after is None:
            return {}
        counts = {"acc": self.after.n_clean, "asr": self.after.n_triggered, "ra": self.after.n_triggered}
        ours = {key: getattr(self.after, key) for key in counts}
        both = {key: told for key, told in (self.reported or {}).items() if ours.get(key) is not None}
        return {key: round(abs(told - ours[key]) * counts[key]) for key, told in both.items()}


@dataclass(frozen=True)
class RunFacts:
    """The facts on a run of a defense before it starts, whosever code runs; its outcome is made from them.

    Attributes:
        method: Name of the defense in the catalogue, or in its toolbox.
        options: Options of the defense, as they will be used.
        seed: Seed of the defense and of the draw of its images.
        device: The device that it runs on, e.g. ``"cpu"``.
        command: The command line, or what a library call amounts to.
        provenance: The origin of the record.
        implementation: ``"clp_plugin"``, or the toolbox whose code runs.
        budget: The data that it may see: ``"none"``, ``"benign:500"``.
        protocol: ``"oracle"`` if a test or triggered image takes part in choosing a parameter.
        target: The attacker's rule for people, as a :class:`~clp_plugin.types.TargetRule` tells itself.
    """

    method: str
    options: Mapping[str, Any]
    seed: int
    device: str
    command: str
    provenance: Provenance
    implementation: str = "clp_plugin"
    budget: str = "none"
    protocol: ChoiceProtocol = "defender"
    target: str = ""

    def outcome(
        self,
        *,
        seconds: float = 0.0,
        before: Metrics | None = None,
        after: Metrics | None = None,
        mask: Mask | None = None,
        reported: Mapping[str, float] | None = None,
        log: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> Outcome:
        """Make the outcome of the run.

        Args:
            seconds: Time of the method itself.
            before: Metrics of the attacked model, if they were measured.
            after: Metrics of the repaired model; None for a run that failed.
            mask: The channels that were pruned, for a defense that prunes.
            reported: Measurements of a toolbox's own script.
            log: Plain values worth keeping.
            error: The reason why it failed; None for a run that ended well.
        """
        return Outcome(
            method=self.method,
            implementation=self.implementation,
            options=dict(self.options),
            command=self.command,
            seed=self.seed,
            device=self.device,
            seconds=seconds,
            budget=self.budget,
            protocol=self.protocol,
            status="ok" if error is None else "failed",
            error=error,
            provenance={**self.provenance.to_json(), **({"target": self.target} if self.target else {})},
            before=None if before is None else StoredMetrics.model_validate(before.to_json()),
            after=None if after is None else StoredMetrics.model_validate(after.to_json()),
            reported=None if reported is None else dict(reported),
            der=None if before is None or after is None else defense_effectiveness(before, after),
            mask=None if mask is None else mask.to_json(),
            log=dict(log or {}),
        )

    def same_run(self, outcome: Outcome) -> bool:
        """Whether an outcome is of this very run: the same method, options, seed, images and model."""
        return (
            (outcome.method, outcome.implementation, outcome.seed) == (self.method, self.implementation, self.seed)
            and (outcome.protocol, outcome.budget) == (self.protocol, self.budget)
            and outcome.provenance.get("sha256") == self.provenance.sha256
            and outcome.has_options(self.options)
        )


def save_outcome(outcome: Outcome, path: Path) -> None:
    """Write an outcome in one step.

    Raises:
        ConfigError: If the file cannot be written.
    """
    write_json_atomically(path, outcome.model_dump(mode="json"))


def load_outcome(path: Path) -> Outcome:
    """Read an outcome.

    Raises:
        ConfigError: If the file is missing, no JSON, of another schema version, or lacks something.
    """
    return _parsed(read_text(path, raises=ConfigError), path)


def load_outcomes(folder: Path) -> list[Outcome]:
    """All outcomes anywhere below a folder, in the order of their paths.

    Other JSON files are passed over, and whatever is hidden: that is not finished.

    Raises:
        ConfigError: If there is no such folder, or an outcome in it cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; expected one that holds outcomes (*.json)")
    texts = ((_text(path), path) for path in sorted(finished(folder, ".json")))  # each file is read once
    return [_parsed(text, path) for text, path in texts if '"schema_version"' in text and '"protocol"' in text]


def _text(path: Path) -> str:
    """Empty if it cannot be read: of somebody else's files below the folder that is nobody's fault."""
    try:
        return read_text(path, raises=ConfigError)
    except ConfigError:
        return ""


def _parsed(text: str, path: Path) -> Outcome:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}; copy it again") from error
    if not isinstance(content, dict) or "schema_version" not in content:
        raise ConfigError(f"{path} is not an outcome: expected a JSON object with schema_version {SCHEMA_VERSION}")
    if content["schema_version"] != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema version {content['schema_version']!r}, this clp_plugin reads {SCHEMA_VERSION}; "
            "run the command again, or use the clp_plugin that wrote it"
        )
    try:
        return Outcome.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ConfigError(f"{path} is not an outcome: {where}: {first['msg']}") from error
