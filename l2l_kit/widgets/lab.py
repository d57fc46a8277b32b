"""Whether the JupyterLab that shows this kernel's notebooks can show its widgets."""

from __future__ import annotations

import os
from pathlib import Path

from jupyter_core.paths import SYSTEM_JUPYTER_PATH, jupyter_data_dir

EXTENSIONS = {"ipywidgets": "@jupyter-widgets/jupyterlab-manager", "anywidget": "anywidget"}
"""By package, the extension of JupyterLab that comes with it."""


def missing_in_lab(server: int | None = None) -> str:
    """What JupyterLab lacks to show the kit's widgets, as a sentence; empty if nothing, or if it cannot be seen.

    Lab can run in another environment than its kernels. Half of every widget is a script that Lab loads, from its own
    environment. If that script is missing, the page says "model not found" however often it is loaded.

    Args:
        server: process of the Jupyter server; None for the one that started this kernel. It can be seen on Linux only.
    """
    try:
        pid = server or int(os.environ["JPY_PARENT_PID"])
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (KeyError, ValueError, OSError):
        return ""
    if not any("jupyter" in Path(word).name for word in command[1:3]):
        return ""  # an editor, or nbconvert and the like, which show no widgets
    prefix = Path(command[0]).parent.parent
    places = [prefix / "share" / "jupyter", Path(jupyter_data_dir()), *map(Path, SYSTEM_JUPYTER_PATH)]
    missing = [
        package
        for package, extension in EXTENSIONS.items()
        if not any((place / "labextensions" / extension).is_dir() for place in places)
    ]
    if not missing:
        return ""
    return (
        f"JupyterLab runs in {prefix} and lacks {' and '.join(missing)} there: widgets will show as 'model not found'. "
        f"Install it beside JupyterLab and restart it: {command[0]} -m pip install {' '.join(missing)}"
    )
