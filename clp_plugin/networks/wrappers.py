"""Find the network inside the wrappers that people and toolboxes put around it."""

from __future__ import annotations

from torch import nn

from clp_plugin.errors import PairingError

_INNER = ("module", "_orig_mod", "_model")
_TRANSPARENT = ("DataParallel", "DistributedDataParallel", "OptimizedModule")


def unwrap(model: object) -> nn.Module:
    """The bare network, so that layer names and masks are the same however it is wrapped.

    Args:
        model: A module; a module in DataParallel, DistributedDataParallel or ``torch.compile``; or an object that is no
            module but keeps its network in ``_model`` (TrojanZoo's wrapper). A module that computes something of its own
            around the network, such as a normalization in front, is kept.

    Raises:
        PairingError: If there is no module inside.
    """
    while type(model).__name__ in _TRANSPARENT or not isinstance(model, nn.Module):
        inner = next((getattr(model, name) for name in _INNER if hasattr(model, name)), None)
        if inner is None:
            raise PairingError(
                f"expected a torch.nn.Module or a wrapper that keeps one in {', '.join(_INNER)}; "
                f"found {type(model).__name__}"
            )
        model = inner
    return model
