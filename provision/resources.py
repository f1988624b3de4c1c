"""Finds the data folders, `catalog/` and `playbooks/`, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_dir(name: str) -> Path:
    """The folder `name` ("catalog" or "playbooks") that belongs to the running code.

    The wheel carries both under `provision/_data`; a checkout has them beside the package.
    """
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
