"""Imports TrojanZoo on today's stack."""

from __future__ import annotations

from types import ModuleType

from clp_plugin.errors import ConfigError

NOT_INSTALLED = "TrojanZoo is not installed: pip install 'clp-plugin[trojanzoo]'"


def trojanvision() -> ModuleType:
    """The package ``trojanvision``.

    The release 2.0.3 asks ``matplotlib.cm`` for a function that moved in 3.9. Its import seeds the generators of Python,
    numpy and torch, and looks for a data set in ``sys.argv``: import it where its scripts would.

    Raises:
        ConfigError: If TrojanZoo is not installed, or cannot be imported here.
    """
    import matplotlib
    from matplotlib import cm

    if not hasattr(cm, "get_cmap"):
        cm.get_cmap = matplotlib.colormaps.get_cmap  # type: ignore[attr-defined]
    try:
        import trojanvision as found
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("trojanvision", "trojanzoo"):
            raise ConfigError(f"TrojanZoo cannot be imported: {error}") from error
        raise ConfigError(NOT_INSTALLED) from error
    except (ImportError, IndexError) as error:  # IndexError: it reads sys.argv, and expects a word after -d
        raise ConfigError(f"TrojanZoo cannot be imported: {type(error).__name__}: {error}") from error
    module: ModuleType = found
    return module
