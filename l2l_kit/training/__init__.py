"""How an optimizer is learned: unrolling, meta-gradients, the meta-training loop."""

from __future__ import annotations

from l2l_kit.training.imitation import Imitation, imitate
from l2l_kit.training.meta_training import (
    EpochRecord,
    History,
    MetaTrainer,
    MetaTraining,
    Progress,
    meta_train,
    validation_batch,
)
from l2l_kit.training.rollout import Point, rollout, trajectory
from l2l_kit.training.unroll import AutogradUnroller, ExactUnroller, ReplayUnroller, Unroller, Window

__all__ = [
    "AutogradUnroller",
    "EpochRecord",
    "ExactUnroller",
    "History",
    "Imitation",
    "MetaTrainer",
    "MetaTraining",
    "Point",
    "Progress",
    "ReplayUnroller",
    "Unroller",
    "Window",
    "imitate",
    "meta_train",
    "rollout",
    "trajectory",
    "validation_batch",
]
