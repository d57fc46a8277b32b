"""How good an optimizer is: paired comparison, tuned baselines, recorded results."""

from __future__ import annotations

from l2l_kit.evaluation.along_the_way import metrics_on_test_set, proposed_steps
from l2l_kit.evaluation.claims import Claim, beats_baselines, falls_behind, ratio_to, wins_sweep
from l2l_kit.evaluation.compare import Curves, Interval, compare
from l2l_kit.evaluation.inside import (
    TensorMemory,
    hidden_units,
    meta_gradient_bias,
    proposals,
    recorded_gradients,
    responses,
)
from l2l_kit.evaluation.lbfgs import LBFGS, lbfgs
from l2l_kit.evaluation.results import (
    EACH_STEP,
    ONE_RATE,
    machine,
    read_result,
    swept_baselines,
    under,
    write_result,
)
from l2l_kit.evaluation.second_order import bfgs_losses, memories
from l2l_kit.evaluation.trajectories import Trajectories, trajectories
from l2l_kit.evaluation.tuning import (
    LEARNING_RATES,
    Tuning,
    learning_rates,
    tune,
    tuned_baselines,
)

__all__ = [
    "EACH_STEP",
    "LBFGS",
    "LEARNING_RATES",
    "ONE_RATE",
    "Claim",
    "Curves",
    "Interval",
    "TensorMemory",
    "Trajectories",
    "Tuning",
    "beats_baselines",
    "bfgs_losses",
    "compare",
    "falls_behind",
    "hidden_units",
    "lbfgs",
    "learning_rates",
    "machine",
    "memories",
    "meta_gradient_bias",
    "metrics_on_test_set",
    "proposals",
    "proposed_steps",
    "ratio_to",
    "read_result",
    "recorded_gradients",
    "responses",
    "swept_baselines",
    "trajectories",
    "tune",
    "tuned_baselines",
    "under",
    "wins_sweep",
    "write_result",
]
