"""How good an optimizer is: paired comparison, tuned baselines, recorded results."""

from __future__ import annotations

from l2l_kit.evaluation.claims import Claim, beats_baselines
from l2l_kit.evaluation.compare import Curves, Interval, compare
from l2l_kit.evaluation.results import machine, read_result, write_result
from l2l_kit.evaluation.trajectories import Trajectories, trajectories
from l2l_kit.evaluation.tuning import LEARNING_RATES, Tuning, tune, tuned_baselines, tuning_table

__all__ = [
    "LEARNING_RATES",
    "Claim",
    "Curves",
    "Interval",
    "Trajectories",
    "Tuning",
    "beats_baselines",
    "compare",
    "machine",
    "read_result",
    "trajectories",
    "tune",
    "tuned_baselines",
    "tuning_table",
    "write_result",
]
