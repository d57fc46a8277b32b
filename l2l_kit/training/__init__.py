"""How a rule is trained: meta_training.py is the loop, meta_gradient.py computes the gradient.

The latter runs the forward loop of rollout.py and the tapes of optimizers/tape.py.
"""

from __future__ import annotations

from l2l_kit.training.meta_gradient import (
    AutogradEstimator,
    FirstOrderEstimator,
    GradientEstimator,
    SecondOrderEstimator,
)
from l2l_kit.training.meta_training import History, MetaTrainer, MetaTraining, Progress, meta_train, validation_batch
from l2l_kit.training.rollout import Point, rollout, trajectory

__all__ = [
    "AutogradEstimator",
    "FirstOrderEstimator",
    "GradientEstimator",
    "History",
    "MetaTrainer",
    "MetaTraining",
    "Point",
    "Progress",
    "SecondOrderEstimator",
    "meta_train",
    "rollout",
    "trajectory",
    "validation_batch",
]
