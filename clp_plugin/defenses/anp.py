"""Adversarial Neuron Pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clp_plugin.defenses.shared.norms import MaskLearning, ScaledNorms, working_copy
from clp_plugin.defenses.shared.options import is_count, require_in_range
from clp_plugin.defenses.shared.training import Labeled, finite
from clp_plugin.images import augment
from clp_plugin.types import Progress

_LOGGED_INTERVALS = 10


@dataclass(frozen=True)
class ANP(MaskLearning):
    """Prune the channels that do harm when their weights and biases are disturbed.

    A factor m per BatchNorm channel is trained so that the network is right both as it is and under the worst relative
    disturbance of its weights and biases: min over m of alpha L(m w, b) + (1 - alpha) max L((m + d) w, (1 + x) b), with
    every |d| and |x| at most eps. Channels that carry a backdoor are the easiest to disturb, and their m falls to 0.

    Attributes:
        iterations: Steps on m, each on a batch drawn with replacement.
        lr: Learning rate of SGD on m.
        alpha: Weight of the loss without disturbance, in [0, 1].
        eps: Largest disturbance of a factor, above 0.
        as_released: Do not project the disturbance back into the ball after its step. The public code does not, so its
            disturbances reach 2 eps, and published numbers depend on that.

    Source:
        Wu, Wang: Adversarial Neuron Pruning Purifies Backdoored Deep Models, NeurIPS 2021 (arXiv:2110.14430), algorithm
        1, with its batch size, step sizes, alpha, eps and 2000 iterations. As in the public code, the network is in
        train mode, batches are cropped and flipped, and only weights are pruned.
        Ours: the choice of the threshold on held-out images, with 0.2 of the images held out. The public code sweeps it
        over the test set; 0.2 is the number usually quoted for the paper.
    """

    iterations: int = 2000
    lr: float = 0.2
    alpha: float = 0.2
    eps: float = 0.4
    as_released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in_range(
            self,
            ("iterations", is_count(self.iterations, 1), "a whole number, at least 1"),
            ("lr", self.lr > 0, "above 0"),
            ("alpha", 0 <= self.alpha <= 1, "in [0, 1]"),
            ("eps", self.eps > 0, "above 0"),
        )

    def learn(
        self, model: nn.Module, data: Labeled, *, seed: int, progress: Progress | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Train m. ``log["losses"]`` and ``log["disturbed_losses"]``: means over up to ten equal stretches."""
        scaled = ScaledNorms(working_copy(model), self._name)
        generator = torch.Generator().manual_seed(seed)
        mask = torch.ones(scaled.channels, device=data.images.device)
        optimizer = torch.optim.SGD([mask], lr=self.lr, momentum=self.momentum)
        seen = []
        for done in range(1, self.iterations + 1):
            losses = self._step(scaled, mask, optimizer, self._draw(data, generator), generator)
            finite(losses.sum(), "lower lr")
            seen.append(losses)
            if progress is not None:
                progress(done, self.iterations)
        stretches = torch.stack(seen).cpu().tensor_split(min(_LOGGED_INTERVALS, self.iterations))
        plain, disturbed = torch.stack([stretch.mean(0) for stretch in stretches]).unbind(1)
        return scaled.by_layer(mask.detach()), {"losses": plain.tolist(), "disturbed_losses": disturbed.tolist()}

    def disturb(
        self,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        channels: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """The inner problem: a random point of the ball, one step of size eps along the gradient's signs, projected.

        Args:
            loss_of: The loss to be raised, a function of the disturbances of weights and of biases.
            channels: Number of channels to disturb.
            generator: Source of the random point, on the CPU; it is advanced.
            device: The device to work on.

        Returns:
            Disturbances of weights and of biases, each ``(channels,)`` in [-eps, eps], or [-2 eps, 2 eps] if
            ``as_released``.
        """
        start = (2 * torch.rand(2, channels, generator=generator) - 1) * self.eps
        points = [point.to(device).requires_grad_() for point in start.unbind()]
        slopes = torch.autograd.grad(loss_of(*points), points)
        moved = [point.detach() + self.eps * slope.sign() for point, slope in zip(points, slopes, strict=True)]
        if not self.as_released:
            moved = [point.clamp(-self.eps, self.eps) for point in moved]
        return moved[0], moved[1]

    def _draw(self, data: Labeled, generator: torch.Generator) -> Labeled:
        batch = data.take(torch.randint(len(data), (self.batch_size,), generator=generator))
        return Labeled(augment(batch.images, generator, padding=self.crop_padding, flip=self.flip), batch.labels)

    def _step(
        self,
        scaled: ScaledNorms,
        mask: Tensor,
        optimizer: torch.optim.Optimizer,
        batch: Labeled,
        generator: torch.Generator,
    ) -> Tensor:
        """Make a step on ``mask`` in place; return both losses before it, ``(2,)``: as it is, disturbed."""

        def disturbed_loss(factors: Tensor, of_weights: Tensor, of_biases: Tensor) -> Tensor:
            logits = scaled.logits(batch.images, factors + of_weights, 1 + of_biases)
            return F.cross_entropy(logits, batch.labels)

        fixed = mask.detach()
        worst = self.disturb(
            lambda of_weights, of_biases: disturbed_loss(fixed, of_weights, of_biases),
            scaled.channels,
            generator,
            mask.device,
        )
        mask.requires_grad_()
        plain = F.cross_entropy(scaled.logits(batch.images, mask), batch.labels)
        disturbed = disturbed_loss(mask, *worst)
        (mask.grad,) = torch.autograd.grad(self.alpha * plain + (1 - self.alpha) * disturbed, [mask])
        optimizer.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
        return torch.stack([plain.detach(), disturbed.detach()])
