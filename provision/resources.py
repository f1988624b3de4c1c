"""Where files live: our data folders, in a checkout and in an installed wheel, and the user's own."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_dir(name: str) -> Path:
    """The folder `name` ("catalog" or "playbooks") that belongs to the running code.

    The wheel carries both under `provision/_data`; a checkout has them beside the package.
    """
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def cache_dir() -> Path:
    """What can be made again: `$XDG_CACHE_HOME/provision`, by default `~/.cache/provision`. Not created here."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def user_data_dir() -> Path:
    """The user's own catalog entries and results: `$XDG_DATA_HOME/provision`, by default `~/.local/share/provision`."""
    return _xdg("XDG_DATA_HOME", ".local/share")


def _xdg(variable: str, default: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / default) / "provision"
