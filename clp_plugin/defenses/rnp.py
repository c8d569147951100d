"""Reconstructive Neuron Pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.defenses.shared.norms import MaskLearning, ScaledNorms, working_copy
from clp_plugin.defenses.shared.options import is_count, require_in_range
from clp_plugin.defenses.shared.training import Labeled, finite, forward, minibatches
from clp_plugin.types import Progress

_LR_MILESTONES = (10, 20)


@dataclass(frozen=True)
class RNP(MaskLearning):
    """Unlearn the benign task, recover it with a factor per channel, prune the channels that recovery turned down.

    Unlearning on benign images leaves a network that knows little but its backdoor; the channels that stand in the way of
    recovering the benign task are then the backdoor's.

    Attributes:
        unlearn_epochs: Most passes over the images in which cross-entropy is maximised over all weights.
        unlearn_lr: Learning rate of that, a tenth of it from pass 10 on and a hundredth from pass 20 on.
        weight_decay: L2 penalty, in unlearning only.
        clip_norm: Largest norm of the gradient of all weights together, in unlearning only.
        clean_threshold: Unlearning ends after the first pass with at most this accuracy on the images that it saw, in
            [0, 1]. If no pass gets there, the weights after the last are recovered and ``log["unlearned"]`` is False.
        recover_epochs: Passes over the images in which the factors are trained.
        lr: Learning rate of SGD on the factors.
        alpha: Factor of the cross-entropy in recovery, above 0.
        as_released: Do not clip. The public code clips before the gradient is computed, which does nothing, and
            published numbers depend on that.

    Source:
        Li, Lyu, Ma, Koren, Lyu, Li, Jiang: Reconstructive Neuron Pruning for Backdoor Defense, ICML 2023
        (arXiv:2305.14876), with the numbers of its public code, which makes up to 21 passes of unlearning, recovers
        nothing if the accuracy stays up, leaves biases alone and has no rule for the threshold.
        Ours: the choice of the threshold on held-out images, with 0.2 of the images held out; going on if the accuracy
        stays up.
    """

    unlearn_epochs: int = 20
    unlearn_lr: float = 0.01
    weight_decay: float = 5e-4
    clip_norm: float = 20.0
    clean_threshold: float = 0.2
    recover_epochs: int = 20
    lr: float = 0.2
    alpha: float = 0.2
    as_released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_range(
            self,
            ("unlearn_epochs", is_count(self.unlearn_epochs, 1), "a whole number, at least 1"),
            ("unlearn_lr", self.unlearn_lr > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("clip_norm", self.clip_norm > 0, "above 0"),
            ("clean_threshold", 0 <= self.clean_threshold <= 1, "in [0, 1]"),
            ("recover_epochs", is_count(self.recover_epochs, 1), "a whole number, at least 1"),
            ("lr", self.lr > 0, "above 0"),
            ("alpha", self.alpha > 0, "above 0"),
        )

    def learn(
        self, model: nn.Module, data: Labeled, *, seed: int, progress: Progress | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Unlearn, then recover, on a copy.

        ``log["unlearn_acc"]`` and ``log["recover_acc"]``: accuracy on the images of each pass as they were seen, that is,
        augmented, in train mode, before each step.
        """
        network = working_copy(model)
        generator = torch.Generator().manual_seed(seed)
        total = self.unlearn_epochs + self.recover_epochs
        report = progress or (lambda _done, _total: None)
        unlearn_acc = self.unlearn(network, data, generator, lambda done, _: report(done, total))
        values, recover_acc = self.recover(
            network, data, generator, lambda done, _: report(self.unlearn_epochs + done, total)
        )
        unlearned = unlearn_acc[-1] <= self.clean_threshold
        return values, {"unlearned": unlearned, "unlearn_acc": unlearn_acc, "recover_acc": recover_acc}

    def unlearn(
        self, network: nn.Module, data: Labeled, generator: torch.Generator, progress: Progress | None = None
    ) -> list[float]:
        """Maximise cross-entropy over all weights until the accuracy is low; ends in train mode.

        Args:
            network: The network, which is changed in place.
            data: At least 2 images, on the network's device.
            generator: Source of order and augmentation, on the CPU; it is advanced.
            progress: Called with passes done and most passes.

        Returns:
            Accuracy of each pass.

        Raises:
            ConfigError: If the loss becomes NaN or infinite.
        """
        weights = list(network.requires_grad_(True).train().parameters())
        optimizer = torch.optim.SGD(weights, lr=self.unlearn_lr, momentum=self.momentum, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, _LR_MILESTONES, gamma=0.1)

        def step(batch: Labeled) -> Tensor:
            logits = forward(network, batch.images)
            loss = -F.cross_entropy(logits, batch.labels)
            finite(loss.detach(), "lower unlearn_lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if not self.as_released:
                torch.nn.utils.clip_grad_norm_(weights, self.clip_norm)
            optimizer.step()
            return logits.detach()

        found = []
        for epoch in range(1, self.unlearn_epochs + 1):
            found.append(self._epoch(data, generator, step))
            schedule.step()
            if progress is not None:
                progress(epoch, self.unlearn_epochs)
            if found[-1] <= self.clean_threshold:
                break
        return found

    def recover(
        self, network: nn.Module, data: Labeled, generator: torch.Generator, progress: Progress | None = None
    ) -> tuple[dict[str, Tensor], list[float]]:
        """Minimise alpha times cross-entropy over one factor per BatchNorm weight; biases and all else stay.

        Args:
            network: The unlearned network, which is taken over: frozen, in train mode; its running statistics move.
            data: At least 2 images, on the network's device.
            generator: Source of order and augmentation, on the CPU; it is advanced.
            progress: Called with passes done and passes in all.

        Returns:
            Layer name to ``(channels,)`` factors in [0, 1], and the accuracy of each pass.

        Raises:
            ConfigError: If there is no BatchNorm with weights, or the loss becomes NaN or infinite.
        """
        scaled = ScaledNorms(network, self._name)
        mask = torch.ones(scaled.channels, device=data.images.device)
        optimizer = torch.optim.SGD([mask], lr=self.lr, momentum=self.momentum)

        def step(batch: Labeled) -> Tensor:
            logits = scaled.logits(batch.images, mask.requires_grad_())
            loss = self.alpha * F.cross_entropy(logits, batch.labels)
            finite(loss.detach(), "lower unlearn_lr or lr")
            (mask.grad,) = torch.autograd.grad(loss, [mask])
            optimizer.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
            return logits.detach()

        found = []
        for epoch in range(1, self.recover_epochs + 1):
            found.append(self._epoch(data, generator, step))
            if progress is not None:
                progress(epoch, self.recover_epochs)
        return scaled.by_layer(mask.detach()), found

    def _epoch(self, data: Labeled, generator: torch.Generator, step: Any) -> float:
        """Make a pass; return the share of its images whose logits, as ``step`` returns them, were right."""
        right = seen = 0
        for batch in minibatches(data, self.batch_size, generator, crop_padding=self.crop_padding, flip=self.flip):
            right += int((step(batch).argmax(1) == batch.labels).sum())
            seen += len(batch)
        return right / seen
