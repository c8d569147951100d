"""Fine-Pruning."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from clp_plugin.defenses.base import Budget, Repaired
from clp_plugin.defenses.shared.choice import Candidate, choose
from clp_plugin.defenses.shared.options import require_in_range
from clp_plugin.defenses.shared.training import Labeled, SGDTraining, benign_images, hold_out, part_of, train_with_sgd
from clp_plugin.errors import ConfigError
from clp_plugin.fusion.graph import ChannelGraph
from clp_plugin.fusion.layers import fuse
from clp_plugin.fusion.view import FusedView, LinearLayer
from clp_plugin.masking.apply import apply_mask
from clp_plugin.networks.hooks import hooked
from clp_plugin.types import Bools, BudgetKind, Floats, Mask, Progress

ORACLE_STEP = 0.05
_BATCH = 256
_ROUNDING = 1e-9


@dataclass(frozen=True)
class FP(SGDTraining):
    """Silence the channels of the last convolution that benign images activate least, then fine-tune.

    A backdoor lives partly in channels that rest on benign images. They are pruned, least active first, until held-out
    accuracy falls by more than ``tolerance``; training on the benign images then changes the others.

    Attributes:
        ratio: Share of the layer's channels to prune, in [0, 1), rounded down to whole channels; None to choose it on
            held-out benign images.
        step: Distance of the shares that are tried: 0, step, 2 step, ... below 1. In [0.001, 1).
        tolerance: Largest drop of held-out accuracy, before fine-tuning, a fraction in [0, 1].
        held_out: Share of the benign images to choose by, in (0, 1). The activity is measured on the others, whether or
            not ``ratio`` is given; all of them are fine-tuned on.

    Raises:
        ConfigError: If a value is out of its range, before anything is run.

    Source:
        Liu, Dolan-Gavitt, Garg: Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks, RAID 2018
        (arXiv:1805.12185). Fine-tuned as in CLP (ECCV 2022), 5.1; see :class:`clp_plugin.defenses.ft.FT`. Steps of 1 % as
        in BackdoorBench.
        Deviations: the number for ``tolerance`` is ours. The layer is one of the fused view (:func:`last_layer`), so
        channels are pruned behind their BatchNorm; where a shortcut is added behind it (residual networks), only the
        layer's own part of the sum is silenced. BackdoorBench ranks and cuts the inputs of the classifier instead,
        and stops by the test set.
    """

    ratio: float | None = None
    step: float = 0.01
    tolerance: float = 0.05
    held_out: float = 0.2
    budget: ClassVar[BudgetKind] = "benign"
    chooses: ClassVar[str] = "ratio"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_range(
            self,
            ("ratio", self.ratio is None or 0 <= self.ratio < 1, "in [0, 1)"),
            ("step", 0.001 <= self.step < 1, "in [0.001, 1)"),
            ("tolerance", 0 <= self.tolerance <= 1, "in [0, 1]"),
            ("held_out", 0 < self.held_out < 1, "in (0, 1)"),
        )

    def repair(self, model: nn.Module, budget: Budget, *, seed: int = 0, progress: Progress | None = None) -> Repaired:
        """Measure, choose, silence, fine-tune.

        Under the oracle protocol each share that is tried costs a pass over the test set: they are then at least
        ``ORACLE_STEP`` apart, and the search ends at the first that costs a tenth of the accuracy.

        ``log``: ``layer``, ``ratio``, how it was chosen, and ``losses`` of each epoch.

        Raises:
            ConfigError: If there are fewer than two benign images or no layer to prune, or the training diverges.
        """
        data = benign_images(budget, model)
        view = fuse(model, budget.input_shape)
        layer = last_layer(view)
        working, held_out = hold_out(data, self.held_out, seed)
        step = self.step if budget.judge is None else max(self.step, ORACLE_STEP)
        chosen = choose(
            model,
            self._candidates(layer.name, activity(view, layer, working), step),
            fixed=self.ratio,
            held_out=held_out,
            tolerance=self.tolerance,
            judge=budget.judge,
            keep_bias=False,
            oracle_by="acc",
        )
        total = self.epochs + 1
        if progress is not None:
            progress(1, total)
        # Only a hook silences every kind of layer in train mode, where a BatchNorm without weights ignores the mask.
        with _silent(view.modules[layer.name], chosen.mask.pruned.get(layer.name)):
            losses = train_with_sgd(model, data, self, seed=seed, progress=part_of(progress, 1, total))
        apply_mask(model, chosen.mask)
        log: dict[str, Any] = {"layer": layer.name, "ratio": chosen.value, **chosen.log, "losses": losses}
        return Repaired(model, chosen.mask, log)

    def _candidates(self, name: str, active: Floats, step: float) -> list[Candidate]:
        """Make one mask a share; a channel is in all masks from its first on. ``active`` is ``(channels,)``."""
        shares = {round(k * step, 10) for k in range(math.ceil(1 / step))} | {self.ratio or 0.0}
        order = np.argsort(active, kind="stable")
        found = []
        for share in sorted(share for share in shares if share < 1):
            pruned = np.zeros(len(active), dtype=bool)
            pruned[order[: min(int(share * len(active) + _ROUNDING), len(active) - 1)]] = True
            found.append(Candidate(share, Mask({name: pruned})))
        return found


def last_layer(view: FusedView) -> LinearLayer:
    """The layer to prune: the deepest, in eval mode, that is no classifier head and no gate.

    Deepest means the most convolutions, norms and linear maps on the longest way from the image; of several such layers the
    one that is executed last. The layer executed last may be a block's shortcut, which is not what the block learned. Gates
    are the layers of squeeze-and-excitation blocks, behind the convolution that they scale: a gate whose channel is silent
    gives one half, not nothing.

    Raises:
        ConfigError: If there is none.
    """
    graph = view.graphs[0]
    ungated = _modules_without_gates(graph)
    layers = [layer for layer in view.layers if layer.kind != "head" and layer.name in ungated and not layer.unprunable]
    if not layers:
        raise ConfigError("fp prunes the last convolution, and this network has none besides its classifier; use ft")
    depths = _depths(graph)
    return max(reversed(layers), key=lambda layer: depths[layer.name])


def _depths(graph: ChannelGraph) -> dict[str, int]:
    """Module name to the number of layers on the longest way from the image to its first call, itself included."""
    of_node: list[int] = []
    depths: dict[str, int] = {}
    for node in graph.nodes:
        of_node.append(max((of_node[parent] for parent in node.parents), default=0) + bool(node.module))
        depths.setdefault(node.module, of_node[-1])
    return depths


def _modules_without_gates(graph: ChannelGraph) -> set[str]:
    """Modules from which something leads to the logits that is no factor made by a sigmoid."""
    todo, seen = list(graph.outputs), set(graph.outputs)
    while todo:
        node = graph.nodes[todo.pop()]
        parents = set(node.parents)
        if node.op.startswith("mul"):
            # A product of factors alone, or a factor alone, is followed: something must lead on.
            parents = {p for p in parents if "sigmoid" not in graph.nodes[p].op} or parents
        todo += parents - seen
        seen |= parents
    return {graph.nodes[index].module for index in seen}


def activity(view: FusedView, layer: LinearLayer, data: Labeled) -> Floats:
    """How strongly images activate each channel of a layer.

    Args:
        view: The fused view of a model in eval mode.
        layer: One of the view's layers.
        data: At least one image with its label.

    Returns:
        ``(channels,)`` float64, at least 0: mean over images and positions of what a ReLU would let through, behind the
        layer's BatchNorm if it has one.
    """
    sums: list[Tensor] = []
    counts: list[int] = []

    def watch(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        by_channel = torch.relu(output).transpose(0, 1).flatten(1)
        sums.append(by_channel.sum(1, dtype=torch.float64))
        counts.append(by_channel.shape[1])

    with torch.inference_mode(), hooked([view.modules[layer.name].register_forward_hook(watch)]):
        for images in data.images.split(_BATCH):
            view.model(images)
    mean: Floats = (torch.stack(sums).sum(0) / sum(counts)).cpu().numpy()
    return mean


def _silent(module: nn.Module, pruned: Bools | None) -> contextlib.AbstractContextManager[None]:
    """Inside, these channels of the module's output, ``(channels,)``, are 0 and pass no gradient on."""
    if pruned is None or not pruned.any():
        return contextlib.nullcontext()
    silent = torch.from_numpy(pruned)

    def silence(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.masked_fill(silent.to(output.device).view(-1, *[1] * (output.ndim - 2)), 0)

    return hooked([module.register_forward_hook(silence)])
