"""Channel-Lipschitzness Pruning for backdoor benchmark toolboxes.

The whole method in five calls::

    record = open_record("runs/demo")
    scores = score(fuse(record.model, record.input_shape))
    mask = select(scores, u=3.0)
    repaired = masked(record.model, mask)
    print(evaluate(repaired, record))

A checkpoint goes through one room a step, and never back:

1. ``records`` opens one attacked model of any toolbox, or makes a record of what is at hand (``open_record``, ``record_from``).
2. ``fusion`` finds the network's linear layers by following its tensors (``fuse``).
3. ``scoring`` bounds each channel's Lipschitz constant; it knows no data and no threshold (``score``).
4. ``selection`` chooses the channels that stand out; it sees no weights (``select``).
5. ``masking`` silences them; it sees no scores (``masked``, ``apply_mask``).
6. ``evaluation`` measures the model before and after (``evaluate``).
7. ``store`` keeps what was measured, one JSON file an outcome; ``reports`` draws from it.

Beside them, ``evidence`` measures what explains a repair and chooses nothing (``trigger_activated_change``, ``correlate``),
``surrogate`` looks for a trigger with no data and chooses a threshold by it (``choose_u``), and ``defenses`` holds CLP and its
rivals, which ``bench`` runs under the rules of the numbers and ``cli`` puts on the command line. ``networks`` and ``files``
know networks and files as people have them, and ``adapters`` one toolbox each.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING

# In a checkout, adapters/ and reports/ sit beside this package; installed, inside it.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "registry.yaml").is_file():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from clp_plugin.errors import ClpError as ClpError
    from clp_plugin.evaluation.metrics import evaluate as evaluate
    from clp_plugin.evidence.correlation import correlate as correlate
    from clp_plugin.evidence.tac import trigger_activated_change as trigger_activated_change
    from clp_plugin.fusion.layers import fuse as fuse
    from clp_plugin.fusion.view import FusedView as FusedView
    from clp_plugin.fusion.view import LinearLayer as LinearLayer
    from clp_plugin.masking.apply import apply_mask as apply_mask
    from clp_plugin.masking.apply import masked as masked
    from clp_plugin.records.opening import open_record as open_record
    from clp_plugin.records.parts import record_from as record_from
    from clp_plugin.scoring.lipschitz import score as score
    from clp_plugin.selection.outliers import select as select
    from clp_plugin.surrogate.choosing import choose_u as choose_u
    from clp_plugin.types import Mask as Mask
    from clp_plugin.types import Record as Record
    from clp_plugin.types import Scores as Scores

_HOME_OF = {
    "ClpError": "errors",
    "FusedView": "fusion.view",
    "LinearLayer": "fusion.view",
    "Mask": "types",
    "Record": "types",
    "Scores": "types",
    "apply_mask": "masking.apply",
    "choose_u": "surrogate.choosing",
    "correlate": "evidence.correlation",
    "evaluate": "evaluation.metrics",
    "fuse": "fusion.layers",
    "masked": "masking.apply",
    "open_record": "records.opening",
    "record_from": "records.parts",
    "score": "scoring.lipschitz",
    "select": "selection.outliers",
    "trigger_activated_change": "evidence.tac",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that ``bench --help`` does not pay for torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'clp_plugin' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(_import_module(f"clp_plugin.{_HOME_OF[name]}"), name)
