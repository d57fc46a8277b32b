"""How a rule is trained: meta-gradients and the meta-training loop.

meta_gradient.py computes the gradient of equation 3, the loss of a rule. It backpropagates through the rule by
replay.py, which uses the tapes of optimizers/tape.py. meta_training.py is the loop around it.
"""

from __future__ import annotations

from l2l_kit.training.meta_gradient import (
    AutogradEstimator,
    FirstOrderEstimator,
    GradientEstimator,
    SecondOrderEstimator,
    UnrollResult,
)
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

__all__ = [
    "AutogradEstimator",
    "EpochRecord",
    "FirstOrderEstimator",
    "GradientEstimator",
    "History",
    "MetaTrainer",
    "MetaTraining",
    "Point",
    "Progress",
    "SecondOrderEstimator",
    "UnrollResult",
    "meta_train",
    "rollout",
    "trajectory",
    "validation_batch",
]
