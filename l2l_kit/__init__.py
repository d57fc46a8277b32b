"""Learning to learn by gradient descent by gradient descent (Andrychowicz et al., NIPS 2016), to explore and to use.

>>> import l2l_kit as l2l
>>> problem = l2l.problems.Quadratics(dim=10)
>>> lstm = l2l.LSTMRule(hidden_size=20, num_layers=2)
>>> history = l2l.meta_train(lstm, problem, l2l.MetaTraining(horizon=100, unroll=20, epochs=50))
>>> curves = l2l.compare({"LSTM": lstm, "Adam": l2l.baseline("adam", lr=0.1)}, problem)
>>> l2l.plots.learning_curves(curves)
>>> optimizer = l2l.LearnedOptimizer(model.parameters(), "quadratics")  # a torch.optim.Optimizer
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

from l2l_kit import evaluation, optimizers, problems, training, zoo
from l2l_kit.evaluation import compare, tune, tuned_baselines
from l2l_kit.extras import needs
from l2l_kit.learned_optimizer import LearnedOptimizer
from l2l_kit.making.build import build
from l2l_kit.optimizers import GroupedRule, LSTMRule, baseline, parameter_groups
from l2l_kit.training import MetaTrainer, MetaTraining, meta_train
from l2l_kit.zoo import load, save

if TYPE_CHECKING:
    from l2l_kit import plots as plots
    from l2l_kit import widgets as widgets

__all__ = [
    "GroupedRule",
    "LSTMRule",
    "LearnedOptimizer",
    "MetaTrainer",
    "MetaTraining",
    "__version__",
    "baseline",
    "build",
    "compare",
    "evaluation",
    "load",
    "meta_train",
    "optimizers",
    "parameter_groups",
    "problems",
    "save",
    "training",
    "tune",
    "tuned_baselines",
    "zoo",
]


def __getattr__(name: str) -> ModuleType:
    """`plots` and `widgets` are imported when first used: an extra brings plotly and ipywidgets."""
    if name in ("plots", "widgets"):
        with needs("lessons"):
            return importlib.import_module(f"l2l_kit.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
