"""Who optimizes: the LSTM optimizer, several of them in groups, one with a memory, and the hand-designed baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers.base import Optimizer, UpdateRule
from l2l_kit.optimizers.baselines import BASELINES, Baseline, baseline
from l2l_kit.optimizers.groups import GroupedBaselines, GroupedRule, parameter_groups
from l2l_kit.optimizers.lstm import LSTMRule, LSTMState, RecurrentRule
from l2l_kit.optimizers.ntm_bfgs import NTMBFGS, NTMState
from l2l_kit.optimizers.preprocessing import Identity, LogSign, Preprocessing, Scale
from l2l_kit.optimizers.tape import LSTMTape

__all__ = [
    "BASELINES",
    "NTMBFGS",
    "Baseline",
    "GroupedBaselines",
    "GroupedRule",
    "Identity",
    "LSTMRule",
    "LSTMState",
    "LSTMTape",
    "LogSign",
    "NTMState",
    "Optimizer",
    "Preprocessing",
    "RecurrentRule",
    "Scale",
    "UpdateRule",
    "baseline",
    "make",
    "parameter_groups",
]

_LEARNED: dict[str, type[UpdateRule]] = {rule.kind: rule for rule in (LSTMRule, GroupedRule, NTMBFGS)}


def make(config: Mapping[str, Any]) -> UpdateRule:
    """Build a learned optimizer, with its initial weights, from its configuration; inverse of `UpdateRule.config`.

    Raises:
        UnknownNameError: if there is no learned optimizer of that kind; the message offers the nearest one.
        TypeError: if it takes no such argument.
    """
    arguments = dict(config)
    kind = arguments.pop("kind", LSTMRule.kind)
    if kind not in _LEARNED:
        raise UnknownNameError("kind of learned optimizer", kind, _LEARNED)
    return _LEARNED[kind](**arguments)
