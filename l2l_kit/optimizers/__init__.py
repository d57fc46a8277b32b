"""Who optimizes: hand-designed baselines, and learned update rules of one LSTM, several LSTMs or one with a memory.

The paper's update rule is `LSTMRule` in lstm.py; tape.py backpropagates through it. Their contract is in base.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature

from l2l_kit.errors import check_names, look_up
from l2l_kit.optimizers.base import Optimizer, UpdateRule
from l2l_kit.optimizers.baselines import BASELINES, Baseline, GroupedBaselines, baseline
from l2l_kit.optimizers.groups import GroupedRule, parameter_groups
from l2l_kit.optimizers.lstm import LSTMRule, LSTMState
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
    "Scale",
    "UpdateRule",
    "baseline",
    "make",
    "parameter_groups",
]

_RULES: dict[str, type[UpdateRule]] = {rule.kind: rule for rule in (LSTMRule, GroupedRule, NTMBFGS)}


def make(config: Mapping[str, object]) -> UpdateRule:
    """Build a rule with its initial weights from its `UpdateRule.config`; a ValueError for another kind or setting."""
    arguments = {"kind": LSTMRule.kind, **config}
    rule = look_up("kind of learned optimizer", arguments.pop("kind"), _RULES)
    tables: list[tuple[type[UpdateRule], Mapping[str, object]]] = [(rule, arguments)]
    if rule is GroupedRule and isinstance(groups := arguments.setdefault("groups", {}), Mapping):
        tables += [(LSTMRule, each) for each in groups.values() if isinstance(each, Mapping)]
        kinds = [settings.get("kind", LSTMRule.kind) for _, settings in tables[1:]]
        check_names("kind of a group's network", kinds, [LSTMRule.kind])
    for made, settings in tables:
        known = [name for name, it in signature(made).parameters.items() if it.kind is not it.KEYWORD_ONLY]
        check_names("optimizer setting", [name for name in settings if name != "kind"], known)
    return rule(**arguments)
