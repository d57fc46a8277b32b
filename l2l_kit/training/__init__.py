"""How a rule is trained: meta-gradients and the meta-training loop.

meta_gradient.py computes the gradient of equation 3, the loss of a rule. It runs the forward loop of rollout.py and
backpropagates through the rule by the tapes of optimizers/tape.py. meta_training.py is the loop around it.
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

__all__ = ["AutogradEstimator", "FirstOrderEstimator", "GradientEstimator", "History", "MetaTrainer", "MetaTraining"]
__all__ += ["Point", "Progress", "SecondOrderEstimator", "meta_train", "rollout", "trajectory", "validation_batch"]
