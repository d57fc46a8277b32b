"""A model's parameters by kind, for learned optimizers that are made of several."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import l2l_kit as l2l
from l2l_kit.evaluation import compare
from l2l_kit.optimizers import GroupedRule, make

RULE = GroupedRule({"conv": {"hidden_size": 4, "preprocessing": "log-sign"}, "fc": {"hidden_size": 3}})
MODULES = {
    "Conv1d": lambda: nn.Conv1d(1, 2, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(1, 2, 3),
    "LazyConv3d": lambda: nn.LazyConv3d(2, 3),
    "conv with weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(1, 2, 3)),
    "conv with spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(1, 2, 3)),
    "conv with the older spectral_norm": lambda: nn.utils.spectral_norm(nn.Conv2d(1, 2, 3)),
    "linear with weight_norm": lambda: parametrizations.weight_norm(nn.Linear(2, 3)),
    "LSTM": lambda: nn.LSTM(2, 3),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "Transformer": lambda: nn.Transformer(4, 2, 1, 1, 8),
}


@pytest.mark.parametrize("name", MODULES)
def test_kernels_of_convolutions_are_conv_and_the_rest_is_fc(name):
    """Each parameter has a kind, once, and an optimizer takes them."""
    module = MODULES[name]()
    found = l2l.parameter_groups(module)
    kinds = {param: group["kind"] for group in found for param in group["params"]}
    assert set(kinds) == set(module.parameters())
    assert sum(len(group["params"]) for group in found) == len(kinds)
    for param_name, param in module.named_parameters():
        assert kinds[param] == ("conv" if "conv" in name.lower() and "bias" not in param_name else "fc")
    l2l.LearnedOptimizer(found, RULE)


def test_shared_parameters_come_once_and_frozen_ones_never():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    (group,) = l2l.parameter_groups(model)
    assert [tuple(param.shape) for param in group["params"]] == [(3, 3), (3,)]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([nn.Parameter(torch.ones(2))], r"\(conv, fc\).* l2l_kit\.parameter_groups"),
        ([{"kind": "attention", "params": [nn.Parameter(torch.ones(2))]}], "unknown kind of parameter 'attention'"),
    ],
)
def test_no_kinds_and_kinds_that_the_rule_lacks_are_refused(groups, message):
    with pytest.raises(ValueError, match=r"'conv.weight', for this optimizer: 'theta'. Known: 'conv', 'fc'"):
        compare({"LSTM": RULE}, l2l.problems.Quadratics(dim=2), steps=1, num_tasks=1)
    with pytest.raises(TypeError, match="parameter_groups: expected a model, not its parameters"):
        l2l.parameter_groups(nn.Linear(1, 1).parameters())
    with pytest.raises(ValueError, match=message):
        l2l.LearnedOptimizer(groups, RULE)
    with pytest.raises(ValueError, match="at least one kind"):
        GroupedRule({})
    for kind in ("a.b", "training", ""):
        with pytest.raises(ValueError, match=f"GroupedRule: '{kind}' cannot name a kind"):
            GroupedRule({kind: {}})
    with pytest.raises(ValueError, match="unknown kind of a group's network 'ntm-bfgs'"):
        make({"kind": "groups", "groups": {"fc": {"kind": "ntm-bfgs"}}})
