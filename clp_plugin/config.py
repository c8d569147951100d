"""The settings that a user makes once: a small YAML file in the place where the system keeps such files."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from platformdirs import user_config_path, user_data_path
from pydantic import BaseModel, ConfigDict, ValidationError

from clp_plugin.errors import ConfigError
from clp_plugin.files.atomic import write_text_atomically
from clp_plugin.files.locks import claimed
from clp_plugin.files.reading import read_yaml

APP = "clp-plugin"
CONFIG_VARIABLE = "CLP_PLUGIN_CONFIG"
DATA_VARIABLE = "CLP_PLUGIN_DATA"
_OWN_CODE = "own_code"


class ToolboxSettings(BaseModel):
    """Settings of one toolbox.

    Attributes:
        root: The folder of the toolbox's checkout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path


class DatasetSettings(BaseModel):
    """Settings of one data set.

    Attributes:
        path: The folder that it lies in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path


class Settings(BaseModel):
    """The content of the configuration file.

    Attributes:
        toolboxes: Name to settings.
        datasets: Name to settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    toolboxes: dict[str, ToolboxSettings] = {}
    datasets: dict[str, DatasetSettings] = {}


def config_file() -> Path:
    """``$CLP_PLUGIN_CONFIG``, or ``config.yaml`` in the user's configuration folder."""
    chosen = os.environ.get(CONFIG_VARIABLE)
    return Path(chosen) if chosen else user_config_path(APP, appauthor=False) / "config.yaml"


def data_folder() -> Path:
    """``$CLP_PLUGIN_DATA``, or the user's data folder of this package: where toolboxes are installed."""
    chosen = os.environ.get(DATA_VARIABLE)
    return Path(chosen) if chosen else user_data_path(APP, appauthor=False)


def load_settings() -> Settings:
    """Settings as the file has them; the defaults if there is none.

    Raises:
        ConfigError: If the file cannot be read or holds something else.
    """
    path = config_file()
    try:
        content = read_yaml(path, raises=ConfigError)
    except ConfigError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Settings()
        raise
    try:
        return Settings.model_validate({} if content is None else content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ConfigError(
            f"{path}: {where}: {first['msg']}; expected toolboxes: {{NAME: {{root: PATH}}}}, "
            "datasets: {NAME: {path: PATH}}"
        ) from error


def dataset_variable(name: str) -> str:
    """The environment variable that says where a data set lies, such as ``CLP_PLUGIN_CIFAR10``."""
    return f"CLP_PLUGIN_{name.upper()}"


def dataset_folder(name: str) -> Path | None:
    """The folder of a data set by its environment variable, else by the configuration file; None if neither tells.

    Raises:
        ConfigError: If the configuration file cannot be read.
    """
    chosen = os.environ.get(dataset_variable(name))
    if chosen:
        return Path(chosen)
    settings = load_settings().datasets.get(name)
    return None if settings is None else settings.path


def remember_toolbox(name: str, root: Path) -> Path:
    """Store where a toolbox lies; other settings stay. Returns the configuration file."""
    with claimed(config_file()):  # two at a time are both remembered
        settings = load_settings()
        toolboxes = {**settings.toolboxes, name: ToolboxSettings(root=root)}
        plain = settings.model_copy(update={"toolboxes": toolboxes}).model_dump(mode="json")
        write_text_atomically(config_file(), yaml.safe_dump(plain, allow_unicode=True, sort_keys=True))
    return config_file()


def remember_own_code(sha256: str, path: Path) -> None:
    """Note that the user of this machine has named a Python file to be run, by the hash of its content."""
    write_text_atomically(data_folder() / _OWN_CODE / sha256, f"{path}\n")


def is_own_code(sha256: str) -> bool:
    """Whether the user of this machine has named a Python file of that content before."""
    return (data_folder() / _OWN_CODE / sha256).is_file()
