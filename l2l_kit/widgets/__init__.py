"""Interactive figures for notebooks: state in, figure out. They work in JupyterLab and, without a page, in scripts."""

from __future__ import annotations

from l2l_kit.widgets.explorer import Explorer, explorer
from l2l_kit.widgets.trainer import Trainer, trainer

__all__ = ["Explorer", "Trainer", "explorer", "trainer"]
