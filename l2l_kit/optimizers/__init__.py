"""Who optimizes: hand-designed baselines, and learned update rules of one LSTM, several LSTMs or one with a memory.

The paper's update rule is `LSTMRule` in lstm.py; tape.py backpropagates through it. All optimizers keep the contract in
base.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers.base import Optimizer, UpdateRule
from l2l_kit.optimizers.baselines import BASELINES, Baseline, baseline
from l2l_kit.optimizers.groups import GroupedRule, parameter_groups
from l2l_kit.optimizers.lstm import LSTMRule, LSTMState
from l2l_kit.optimizers.ntm_bfgs import NTMBFGS, NTMState
from l2l_kit.optimizers.preprocessing import Identity, LogSign, Preprocessing, Scale
from l2l_kit.optimizers.tape import LSTMTape

__all__ = ["BASELINES", "Baseline", "GroupedRule", "Identity", "LSTMRule", "LSTMState", "LSTMTape", "LogSign"]
__all__ += ["NTMBFGS", "NTMState", "Optimizer", "Preprocessing", "Scale", "UpdateRule", "baseline", "make"]
__all__ += ["parameter_groups"]

_RULES: dict[object, type[UpdateRule]] = {rule.kind: rule for rule in (LSTMRule, GroupedRule, NTMBFGS)}


def make(config: Mapping[str, object]) -> UpdateRule:
    """Build a rule with its initial weights from its `UpdateRule.config`; an `UnknownNameError` for another kind."""
    arguments = {"kind": LSTMRule.kind, **config}
    kind = arguments.pop("kind")
    if kind not in _RULES:
        raise UnknownNameError("kind of learned optimizer", kind, map(str, _RULES))
    return _RULES[kind](**arguments)
