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
from l2l_kit.evaluation.results import machine, read_result, write_result
from l2l_kit.evaluation.second_order import bfgs_losses, memories
from l2l_kit.evaluation.sweep import (
    EACH_STEP,
    ONE_RATE,
    Piece,
    Sweep,
    as_word,
    look,
    read_sweep,
    swept_baselines,
    tabulate,
    under,
)
from l2l_kit.evaluation.trajectories import Trajectories, trajectories
from l2l_kit.evaluation.tuning import (
    LEARNING_RATES,
    Tuning,
    learning_rates,
    record_tuning,
    tune,
    tuned_baselines,
    tuning_table,
)

__all__ = [
    "EACH_STEP",
    "LBFGS",
    "LEARNING_RATES",
    "ONE_RATE",
    "Claim",
    "Curves",
    "Interval",
    "Piece",
    "Sweep",
    "TensorMemory",
    "Trajectories",
    "Tuning",
    "as_word",
    "beats_baselines",
    "bfgs_losses",
    "compare",
    "falls_behind",
    "hidden_units",
    "lbfgs",
    "learning_rates",
    "look",
    "machine",
    "memories",
    "meta_gradient_bias",
    "metrics_on_test_set",
    "proposals",
    "proposed_steps",
    "ratio_to",
    "read_result",
    "read_sweep",
    "record_tuning",
    "recorded_gradients",
    "responses",
    "swept_baselines",
    "tabulate",
    "trajectories",
    "tune",
    "tuned_baselines",
    "tuning_table",
    "under",
    "wins_sweep",
    "write_result",
]
