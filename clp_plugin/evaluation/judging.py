"""Judge several networks on one record, and equal ones once."""

from __future__ import annotations

import copy

from torch import nn

from clp_plugin.evaluation.metrics import Judgement, judge
from clp_plugin.networks.fingerprint import fingerprint
from clp_plugin.types import Record


class RecordJudge:
    """Judges networks as :func:`clp_plugin.evaluation.metrics.judge` does, and remembers how each was judged.

    A defense that prunes nothing leaves the attacked network; the same mask comes of several thresholds, seeds and methods.
    """

    def __init__(self, record: Record, *, device: str = "cpu") -> None:
        """Judge on a record.

        Args:
            record: Supplies the test images and the target rule.
            device: The device to run on.
        """
        self._record, self._device = record, device
        self._known: dict[str, Judgement] = {}
        self._before: Judgement | None = None

    def before(self) -> Judgement:
        """The judgement of the record's own network, made once; the network stays where it is.

        Raises:
            RecordError: If there are no test images or none that count for ASR.
        """
        if self._before is None:
            self._before = self(copy.deepcopy(self._record.model))
        return self._before

    def __call__(self, network: nn.Module) -> Judgement:
        """The judgement of a network, which is moved to the device and set to eval mode.

        Raises:
            RecordError: If there are no test images or none that count for ASR.
        """
        mark = fingerprint(network.to(self._device).eval())
        if mark is None:
            return judge(network, self._record, device=self._device)
        if mark not in self._known:
            self._known[mark] = judge(network, self._record, device=self._device)
        return self._known[mark]
