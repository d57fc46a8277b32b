"""How good an optimizer is: paired comparison, tuned baselines, recorded results, claims, and a look inside."""

from __future__ import annotations

from l2l_kit.evaluation.analysis import (
    TensorMemory,
    hidden_units,
    memories,
    meta_gradient_bias,
    proposals,
    proposed_steps,
    recorded_gradients,
    responses,
)
from l2l_kit.evaluation.claims import Claim, beats_baselines, falls_behind, ratio_to, wins_sweep
from l2l_kit.evaluation.comparison import Trajectories, compare, losses_at, metrics_on_test_set, trajectories
from l2l_kit.evaluation.curves import Curves, Statistic
from l2l_kit.evaluation.results import machine, read_result, write_result
from l2l_kit.evaluation.second_order import LBFGS, bfgs_losses, lbfgs
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
    "Piece",
    "Statistic",
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
    "losses_at",
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
