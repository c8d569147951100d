"""How much to prune: one rule for all defenses, on held-out benign images; and the toolboxes' rule, on the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from clp_plugin.defenses.base import Judge
from clp_plugin.defenses.shared.training import Labeled, accuracy
from clp_plugin.errors import ConfigError
from clp_plugin.masking.apply import apply_mask
from clp_plugin.types import Mask

ORACLE_ACC_DROP = 0.1
# Of u, as in figure 4 of the CLP paper, from the weakest pruning to the strongest.
ORACLE_U = tuple(u / 2 for u in range(20, -1, -1))


@dataclass(frozen=True)
class Candidate:
    """One strength of pruning, to be tried.

    Attributes:
        value: Value of the parameter that is chosen: a threshold, a ratio, u.
        mask: The channels that it prunes.
    """

    value: float
    mask: Mask


@dataclass(frozen=True)
class Chosen:
    """The candidate that was chosen, and by what.

    Attributes:
        value: Value of the parameter; None where even the weakest candidate costs too much, so that nothing is pruned.
        mask: The channels that are pruned.
        log: The rule and every candidate that was tried, with its figures.
    """

    value: float | None
    mask: Mask
    log: dict[str, Any]


def choose_by_benign_accuracy(
    model: nn.Module, candidates: Sequence[Candidate], held_out: Labeled, tolerance: float, *, keep_bias: bool
) -> Chosen:
    """The strongest pruning that costs at most ``tolerance`` of accuracy on held-out benign images.

    Candidates are tried from the weakest on and the search ends at the first that costs more, so that a lucky one
    behind it is never chosen. If the first already costs too much, nothing is pruned.

    Args:
        model: The attacked model; it is unchanged afterwards.
        candidates: At least one, from the weakest to the strongest pruning.
        held_out: Benign images that took no part in the scores.
        tolerance: Largest drop of accuracy, a fraction in [0, 1].
        keep_bias: Silence weights only; see :func:`clp_plugin.masking.apply.apply_mask`.

    Source:
        Ours: the papers leave the choice open or fix a number; the toolboxes use the test set.
    """
    before = accuracy(model, held_out)
    chosen, tried, known = Chosen(None, Mask({}), {}), [], {Mask({}).fingerprint(): before}
    for candidate in candidates:
        mark = candidate.mask.fingerprint()
        if mark not in known:
            with apply_mask(model, candidate.mask, keep_bias=keep_bias):
                known[mark] = accuracy(model, held_out)
        tried.append({"value": candidate.value, "pruned": len(candidate.mask), "acc": known[mark]})
        # Counts of images are whole: half an image of slack keeps rounding from deciding.
        if before - known[mark] > tolerance + 0.5 / len(held_out):
            break
        chosen = Chosen(candidate.value, candidate.mask, {})
    rule = f"strongest with at most {tolerance:g} less accuracy on {len(held_out)} held-out benign images"
    return replace(chosen, log={"rule": rule, "held_out_acc": before, "tried": tried})


def choose_by_test_set(
    model: nn.Module,
    candidates: Sequence[Candidate],
    judge: Judge,
    *,
    keep_bias: bool,
    by: Literal["asr", "acc"] = "asr",
) -> Chosen:
    """The toolboxes' choice, which no defender can make: its numbers are an oracle's.

    Args:
        model: The attacked model; it is unchanged afterwards.
        candidates: At least one, from the weakest to the strongest pruning.
        judge: Metrics on the test images.
        keep_bias: Silence weights only; see :func:`clp_plugin.masking.apply.apply_mask`.
        by: ``"asr"``: lowest ASR among those whose accuracy falls by less than a tenth of itself (BackdoorBench's ANP
            and RNP). ``"acc"``: the last one before the first whose accuracy falls by more (its FP).
    """
    before = judge(model)
    chosen, best, tried = Chosen(None, Mask({}), {}), before.asr, []
    known = {Mask({}).fingerprint(): before}
    for candidate in candidates:
        mark = candidate.mask.fingerprint()
        if mark not in known:
            with apply_mask(model, candidate.mask, keep_bias=keep_bias):
                known[mark] = judge(model)
        found = known[mark]
        tried.append({"value": candidate.value, "pruned": len(candidate.mask), "acc": found.acc, "asr": found.asr})
        if before.acc - found.acc >= ORACLE_ACC_DROP * before.acc:
            if by == "acc":
                break
            continue
        if by == "acc" or found.asr < best:
            chosen, best = Chosen(candidate.value, candidate.mask, {}), found.asr
    rule = "oracle: " + ("lowest test ASR" if by == "asr" else "strongest") + " with less than 10 % loss of test ACC"
    return replace(chosen, log={"rule": rule, "tried": tried})


def choose(
    model: nn.Module,
    candidates: Sequence[Candidate],
    *,
    fixed: float | None,
    held_out: Labeled,
    tolerance: float,
    judge: Judge | None,
    keep_bias: bool,
    oracle_by: Literal["asr", "acc"] = "asr",
) -> Chosen:
    """Choose by the test set if there is a judge, else the value ``fixed`` if given, else by benign accuracy.

    Raises:
        ConfigError: If there is no candidate of value ``fixed``.
    """
    if judge is not None:
        return choose_by_test_set(model, candidates, judge, keep_bias=keep_bias, by=oracle_by)
    if fixed is None:
        return choose_by_benign_accuracy(model, candidates, held_out, tolerance, keep_bias=keep_bias)
    for candidate in candidates:
        if candidate.value == fixed:
            return Chosen(fixed, candidate.mask, {"rule": "fixed"})
    raise ConfigError(f"expected one of {[candidate.value for candidate in candidates]}, found {fixed}")
