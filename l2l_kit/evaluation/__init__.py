"""How good an optimizer is: paired comparison, tuned baselines, recorded results, claims, and a look inside."""

from __future__ import annotations

from l2l_kit.evaluation.analysis import (
    TensorMemory,
    Thoughts,
    hidden_units,
    memories,
    meta_gradient_bias,
    proposals,
    proposed_steps,
    recorded_gradients,
    responses,
    thoughts,
)
from l2l_kit.evaluation.bfgs import LBFGS, bfgs_losses, lbfgs
from l2l_kit.evaluation.claims import GROUPS, VERDICTS, Claim, claim, ratio_table, summary, tally
from l2l_kit.evaluation.comparison import compare, losses_at, metrics_on_test_set
from l2l_kit.evaluation.curves import Curves, Statistic, paired_ratio
from l2l_kit.evaluation.results import (
    AVERAGED,
    EACH_STEP,
    ONE_RATE,
    RATIO,
    kept_episodes,
    machine,
    provenance,
    ratio_columns,
    ratios_of,
    read_result,
    swept_baselines,
    training_of,
    under,
    with_seed,
    write_result,
)
from l2l_kit.evaluation.tuning import LEARNING_RATES, Tuning, learning_rates, tune, tuned_baselines
