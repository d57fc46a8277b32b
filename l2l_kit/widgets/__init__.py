"""Interactive figures for notebooks: state in, figure out. They work in JupyterLab and, without a page, in scripts."""

from __future__ import annotations

from l2l_kit.widgets.explorer import Explorer, explorer
from l2l_kit.widgets.lab import missing_in_lab
from l2l_kit.widgets.memory_explorer import MemoryExplorer, memory_explorer
from l2l_kit.widgets.network_explorer import NetworkExplorer, network_explorer
from l2l_kit.widgets.painter import Painter, painter
from l2l_kit.widgets.picture_explorer import PictureExplorer, picture_explorer
from l2l_kit.widgets.preprocessing_explorer import PreprocessingExplorer, preprocessing_explorer
from l2l_kit.widgets.proposal_explorer import ProposalExplorer, proposal_explorer
from l2l_kit.widgets.trainer import Trainer, trainer

__all__ = [
    "Explorer",
    "MemoryExplorer",
    "NetworkExplorer",
    "Painter",
    "PictureExplorer",
    "PreprocessingExplorer",
    "ProposalExplorer",
    "Trainer",
    "explorer",
    "memory_explorer",
    "missing_in_lab",
    "network_explorer",
    "painter",
    "picture_explorer",
    "preprocessing_explorer",
    "proposal_explorer",
    "trainer",
]
