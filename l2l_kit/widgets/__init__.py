"""Interactive figures for notebooks: controls in, figure out. They work in JupyterLab and in scripts."""

from __future__ import annotations

from l2l_kit.widgets.comparisons import NetworkExplorer, PictureExplorer, QuadraticsExplorer
from l2l_kit.widgets.coordinate import CoordinateExplorer
from l2l_kit.widgets.explorer import Explorer
from l2l_kit.widgets.inside import MemoryExplorer, PreprocessingExplorer, ProposalExplorer
from l2l_kit.widgets.lab import missing_in_lab
from l2l_kit.widgets.painter import Painter
from l2l_kit.widgets.playground import Playground
from l2l_kit.widgets.prediction import Prediction
from l2l_kit.widgets.race import Race
from l2l_kit.widgets.trainer import Trainer

__all__ = [
    "CoordinateExplorer",
    "Explorer",
    "MemoryExplorer",
    "NetworkExplorer",
    "Painter",
    "PictureExplorer",
    "Playground",
    "Prediction",
    "PreprocessingExplorer",
    "ProposalExplorer",
    "QuadraticsExplorer",
    "Race",
    "Trainer",
    "missing_in_lab",
]
