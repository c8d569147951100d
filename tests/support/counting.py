"""Counts how often functions of the package are called, wherever they were imported to."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest


def calls_counted(monkeypatch: pytest.MonkeyPatch, *functions: Callable[..., Any]) -> Counter[str]:
    """Replace each function in every module of the package that holds it; the counter's keys are their names.

    A module that is imported later would hold the replacement for good: the test imports beforehand what it will run.
    """
    counts: Counter[str] = Counter()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            counts[function.__name__] += 1
            return function(*args, **options)

        return counted

    ours = [module for name, module in sys.modules.items() if name.startswith("clp_plugin")]
    for function in functions:
        replacement = counting(function)
        for module in ours:
            for name, value in list(vars(module).items()):
                if value is function:
                    monkeypatch.setattr(module, name, replacement)
    return counts
