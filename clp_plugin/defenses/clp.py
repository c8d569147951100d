"""Channel-Lipschitzness Pruning."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from clp_plugin.defenses.base import Budget, Repaired
from clp_plugin.defenses.shared.choice import ORACLE_U, Candidate, choose_by_test_set
from clp_plugin.errors import ConfigError
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.published import published_rule_note
from clp_plugin.masking.apply import apply_mask
from clp_plugin.networks.copying import copy_of
from clp_plugin.scoring.lipschitz import score
from clp_plugin.selection.outliers import PRUNED_KINDS, parse_layers, select
from clp_plugin.surrogate.choosing import choose_u
from clp_plugin.types import BudgetKind, NormKind, Pairing, Progress, ScoreKind


@dataclass(frozen=True)
class CLP:
    """Prune the channels whose score is an outlier in their layer. Sees no data at all.

    Attributes:
        u: Prune above mean + u * std; ``"auto"``: the u that takes a trigger away which is sought in the weights alone,
            or none, as :func:`clp_plugin.surrogate.choosing.choose_u` chooses it. An opt-in that is not validated.
        score: ``paper`` or ``relative``; see :func:`clp_plugin.scoring.lipschitz.score`.
        norm: The norm that scores are: ``reshaped`` or ``exact``, as of :func:`clp_plugin.scoring.lipschitz.score`.
        layers: The kinds of layers to prune: ``fused,diagonal``, or ``fused,diagonal,conv`` to prune convolutions that no
            BatchNorm follows as well.
        pairing: ``dataflow``, or ``registration`` to reproduce the published code.

    Raises:
        ConfigError: If u is negative or neither a number nor auto, or ``layers`` names another kind, before anything is run.

    Source:
        Zheng, Tang, Li, Liu: Data-free backdoor removal based on channel Lipschitzness, ECCV 2022.
    """

    u: float | Literal["auto"] = 3.0
    score: ScoreKind = "paper"
    norm: NormKind = "reshaped"
    layers: str = ",".join(PRUNED_KINDS)
    pairing: Pairing = "dataflow"
    budget: ClassVar[BudgetKind] = "none"

    def __post_init__(self) -> None:
        parse_layers(self.layers)
        if self.u != "auto" and (isinstance(self.u, (str, bool)) or not self.u >= 0):
            raise ConfigError(f"clp: u must be 0 or more (the paper uses 3 to 5), or auto, found {self.u!r}")
        if self.pairing == "registration" and (self.score, self.norm) != ("paper", "reshaped"):
            raise ConfigError(
                f"clp: parity mode has only score='paper', norm='reshaped'; found {self.score!r}, {self.norm!r}"
            )

    @property
    def chooses(self) -> str:
        """The parameter that results could choose; none where the weights choose it."""
        return "" if self.u == "auto" else "u"

    def repair(self, model: nn.Module, budget: Budget, *, seed: int = 0, progress: Progress | None = None) -> Repaired:
        """Score, select, silence. ``log["u"]`` is the threshold as used, ``log["seconds_score"]`` times the scoring alone.

        Deterministic; only ``u="auto"`` uses ``seed``, and its log holds the choice with its evidence: ``u`` is None where
        nothing is pruned. Under the oracle protocol u is chosen from 0 to 10 in steps of 0.5 by the test set.

        Raises:
            ConfigError: If u is to be chosen and no BatchNorm keeps running statistics, or the images are too small.
        """
        view = fuse(model, budget.input_shape, pairing=self.pairing)
        start = time.perf_counter()
        scores = score(view, score=self.score, norm=self.norm)
        seconds = time.perf_counter() - start
        followed = view if self.pairing == "dataflow" else fuse(model, budget.input_shape)
        log: dict[str, Any] = {
            "u": self.u,
            "seconds_score": seconds,
            "layers": view.counts(),
            "published_rule": published_rule_note(model, followed),
        }
        layers = parse_layers(self.layers)
        if self.u == "auto":
            chosen_u = choose_u(
                view, scores, input_shape=budget.input_shape, mean=budget.mean, std=budget.std, layers=layers, seed=seed,
                progress=progress,
            )  # fmt: skip
            mask, log = chosen_u.mask, {**log, **chosen_u.to_json()}
        else:
            mask = select(scores, self.u, layers=layers)
        if budget.judge is not None:
            candidates = [Candidate(u, select(scores, u, layers=layers)) for u in ORACLE_U]
            chosen = choose_by_test_set(model, candidates, budget.judge, keep_bias=False)
            mask, log = chosen.mask, {**log, "u": chosen.value, **chosen.log}
        # The view stays that of the network as it came: its figures and its TAC are measured on that one.
        repaired = copy_of(model)
        apply_mask(repaired, mask)
        return Repaired(repaired, mask, log, view, scores)
