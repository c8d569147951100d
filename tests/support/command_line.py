"""``bench`` inside the test's own process: exit code, standard output, standard error."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from typing import Any

import pytest

from clp_plugin.cli.app import app
from clp_plugin.cli.console import run

# An attack that takes a second.
ATTACK = [
    "--preset", "demo", "--n-train", "300", "--n-test", "60", "--epochs", "1", "--width", "8",
]  # fmt: skip
# Keys of the JSON contract in docs/cli.md.
METRICS = ["acc", "asr", "ra", "base_rate", "n_clean", "n_triggered"]
LAYER = ["name", "kind", "conv", "norm", "channels", "sigma", "pruned"]
CORRELATION = [
    "name", "pearson", "spearman", "n", "pearson_ci", "spearman_ci", "pearson_p", "spearman_p", "reason",
]  # fmt: skip
DEFEND = [
    "method", "implementation", "options", "before", "after", "der", "pruned", "seconds", "budget",
    "protocol", "mask", "weights", "outcome",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output; nothing else may be there."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out, parse_constant=pytest.fail)


def bench(*argv: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(app, [str(arg) for arg in argv])
    return Result(code, out.getvalue(), err.getvalue())


def refused(*argv: object) -> str:
    """The one line that a user's mistake gets."""
    result = bench(*argv)
    assert result.code == 2, (result.out, result.err)
    assert result.out == ""
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    return lines[0]


def without(found: dict[str, Any], *volatile: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in volatile}
