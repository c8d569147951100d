"""The whole repair: search, gate, rounds, and which channels the surrogate triggers drive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clp_plugin.fusion.view import FusedView
from clp_plugin.networks.copying import copy_of
from clp_plugin.networks.hooks import eval_mode
from clp_plugin.surrogate.finding import STAGES, Found, Gate, find_surrogates
from clp_plugin.surrogate.order import gain_over_cost, ranked
from clp_plugin.surrogate.pixels import PixelNetwork, per_channel
from clp_plugin.surrogate.rounds import Round, prunable_widths, prune_in_rounds
from clp_plugin.types import Mask, Progress

_DRIVEN = 12  # channels that are told


@dataclass(frozen=True)
class Driven:
    """A channel that the surrogate triggers drive.

    Attributes:
        layer: The module that is silenced when the channel is pruned.
        channel: Index of the channel, from 0.
        gain_over_cost: What pruning it takes from the triggers over what it takes from the images' own classes, to first
            order; see :func:`clp_plugin.surrogate.order.gain_over_cost`.
    """

    layer: str
    channel: int
    gain_over_cost: float


@dataclass(frozen=True, eq=False)
class SurrogateRepair:
    """What was found in a network's weights, and what a repair prunes.

    Attributes:
        found: The search.
        driven: The channels that the triggers drive most, the first one most.
        mask: The channels that all rounds together prune; none if the patch was not strong enough to act on.
        rounds: What each round did.
        agreement: Agreement of the logits of synthetic images after all rounds with those before.
        seconds_search: Seconds of the search, without the rounds.
    """

    found: Found
    driven: tuple[Driven, ...]
    mask: Mask
    rounds: tuple[Round, ...]
    agreement: float
    seconds_search: float

    @property
    def says(self) -> str:
        """The finding and the repair in one line, with the numbers."""
        if not self.found.accepted:
            return f"{self.found.says}; nothing is pruned"
        left = f"leave {self.rounds[-1].after:.0%} to the strongest trigger then known"
        kept = f"logits agree to {self.agreement:.2f} with those before"
        return f"{self.found.says}; {len(self.mask)} channels pruned in {len(self.rounds)} rounds {left}, and {kept}"

    def to_json(self) -> dict[str, Any]:
        """The evidence, as plain JSON values for a log."""
        return {
            **self.found.to_json(),
            "finding": self.says,
            "driven": [asdict(one) for one in self.driven],
            "rounds": [one.to_json() for one in self.rounds],
            "agreement": self.agreement,
            "seconds_search": self.seconds_search,
        }


def surrogate_repair(
    view: FusedView,
    *,
    input_shape: Sequence[int],
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    gate: Gate | None = None,
    rounds: int = 4,
    least_agreement: float = 0.8,
    count: int = 40,
    seed: int = 0,
    progress: Progress | None = None,
) -> SurrogateRepair:
    """Seek surrogate triggers in a network and, if the gate is passed, the channels to prune; the network stays as it is.

    Args:
        view: The network's linear layers.
        input_shape: Shape of one input, ``(C, H, W)``.
        mean: Mean of the normalization that the network wants, per channel or one for all, on the [0, 1] scale.
        std: Standard deviation of that normalization, per channel or one for all, on the [0, 1] scale.
        gate: The strength that a patch must have.
        rounds: The most rounds of pruning, 1 or more.
        least_agreement: The agreement of the logits after all rounds with those before that must be left.
        count: Number of images to synthesise with classes; as many again without.
        seed: Seed of the images.
        progress: Called with the stages done and the most stages.

    Raises:
        ConfigError: If no BatchNorm keeps running statistics, or the images are too small.
    """
    start = time.perf_counter()
    network = PixelNetwork(copy_of(view.model), per_channel(mean, input_shape[0]), per_channel(std, input_shape[0]))

    def tell(done: int, _total: int) -> None:
        if progress is not None:
            progress(done, STAGES + rounds)

    with eval_mode(network.network):
        found = find_surrogates(network, input_shape, gate=gate, count=count, seed=seed, progress=tell)
        searched = time.perf_counter()
        values = gain_over_cost(network, found.fit, found.agreeing, list(prunable_widths(view)))
        driven = tuple(Driven(name, k, float(values[name][k])) for name, k in ranked(values)[:_DRIVEN])
        mask, kept = Mask({}), 1.0
        log: list[Round] = []
        if found.accepted:
            mask, log = prune_in_rounds(
                network, view, found, rounds=rounds, least_agreement=least_agreement,
                progress=lambda done, total: tell(STAGES + done, total),
            )  # fmt: skip
            kept = log[-1].agreement
    return SurrogateRepair(found, driven, mask, tuple(log), kept, searched - start)
