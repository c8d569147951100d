"""Judge one network under many masks: images decoded once, each distinct mask once, shared layers once a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.evaluation.metrics import Judgement, metrics_of
from clp_plugin.evaluation.prefix_replay import PrefixReplay, shared_prefix, sharing, watched
from clp_plugin.masking.apply import apply_mask
from clp_plugin.networks.wrappers import unwrap
from clp_plugin.types import ImageSet, Ints, Mask, Progress, Record


def evaluate_masks(
    model: nn.Module,
    record: Record,
    masks: Sequence[Mask],
    *,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> list[Judgement]:
    """Evaluate ``model`` under each mask, as if each masked copy were evaluated by itself.

    The masks are visited in an order in which neighbours agree on as many early layers as possible; for each batch, what
    lies before the first layer in which a mask differs from the one before it is not computed again. Outputs are bit-equal
    to a plain run with the same batch size.

    Args:
        model: Unwrapped or not; unchanged afterwards.
        record: Supplies the images and the target rule.
        masks: Masks of this model.
        device: The device to run on.
        batch_size: Images per forward pass; the losses depend on it, as the toolbox's do.
        progress: Called with runs of a batch done and in all.

    Returns:
        One judgement a mask, in the given order, as :func:`clp_plugin.evaluation.metrics.judge` would give it.
    """
    network = unwrap(model).to(device).eval()
    triggered = record.triggered.images
    total = len(masks) * (-(-len(record.clean) // batch_size) - (-len(triggered) // batch_size))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    evaluation = _OrderedEvaluation(network, masks, device, batch_size, tick)
    clean, clean_losses = evaluation.over(record.clean, record.clean.labels)
    found, losses = evaluation.over(triggered, record.target.wanted(triggered.labels))
    return [
        Judgement(metrics_of(record, clean[i], found[i]), clean_losses[i], losses[i]) for i in range(len(masks))
    ]  # fmt: skip


class _OrderedEvaluation:
    """An order of trying the masks, repeated for every batch."""

    def __init__(
        self, network: nn.Module, masks: Sequence[Mask], device: str, batch_size: int, tick: Callable[[], None]
    ) -> None:
        self.network, self.masks, self.device, self.batch_size, self.tick = network, masks, device, batch_size, tick
        self.replay = PrefixReplay()
        self.sharing = sharing(network)
        self.order: list[int] = []
        self.wanted = 0

    def over(self, images: ImageSet, labels: Ints) -> tuple[list[Ints], list[float]]:
        """Class of every image ``(N,)`` under each mask, and each mask's loss."""
        classes: list[list[Ints]] = [[] for _ in self.masks]
        losses: list[list[float]] = [[] for _ in self.masks]
        start = 0
        dtype = next((p.dtype for p in self.network.parameters()), torch.float32)
        with torch.no_grad(), watched(self.network, self.replay):
            for batch in images.batches(self.batch_size):
                wanted = torch.from_numpy(labels[start : start + len(batch)]).to(self.device)
                start += len(batch)
                for index, logits in self._logits(batch.to(self.device, dtype)):
                    classes[index].append(logits.argmax(dim=1).cpu().numpy().astype(np.int64))
                    losses[index].append(float(F.cross_entropy(logits.float(), wanted)))
                    self.tick()
        return (
            [np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in classes],
            [float(np.mean(parts)) if parts else float("nan") for parts in losses],
        )

    def _logits(self, batch: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        if not self.order:
            self._find_order(batch)
        self.replay.new_batch(self.wanted)
        found = []
        for before, index in zip([None, *self.order], self.order, strict=False):
            # By the calls of this very batch: a network may go another way with other data.
            unchanged = 0 if before is None else shared_prefix(self.replay.calls, self._differing(before, index))
            with apply_mask(self.network, self.masks[index]):
                found.append((index, self.replay.run(self.network, batch, unchanged)))
        return found

    def _find_order(self, batch: torch.Tensor) -> None:
        """Sorted like words whose letters are the layers in the order of their calls: neighbours share beginnings."""
        self.replay.new_batch(0)
        self.replay.run(self.network, batch[:1], 0)
        calls = list(self.replay.calls)
        self.order = sorted(range(len(self.masks)), key=lambda index: _sort_key(self.masks[index], calls))
        self.wanted = max(
            (shared_prefix(calls, self._differing(a, b)) for a, b in itertools.pairwise(self.order)), default=0
        )

    def _differing(self, first: int, second: int) -> set[str]:
        """Layers that lose other channels in one mask than in the other, and whatever shares their weights."""
        one, other = self.masks[first].indices(), self.masks[second].indices()
        layers = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
        return layers.union(*(self.sharing.get(name, set()) for name in layers))


def _sort_key(mask: Mask, calls: Sequence[str]) -> list[bytes]:
    return [mask.pruned[name].tobytes() if name in mask.pruned and mask.pruned[name].any() else b"" for name in calls]
