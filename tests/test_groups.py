"""A model's parameters by kind, for learned optimizers that are made of several."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import l2l_kit as l2l
from l2l_kit.optimizers import GroupedRule

RULE = GroupedRule({"conv": {"hidden_size": 4, "preprocessing": "log-sign"}, "fc": {"hidden_size": 3}})
CONVOLUTIONS = [f"{lazy}Conv{way}{axes}d" for lazy in ("", "Lazy") for way in ("", "Transpose") for axes in (1, 2, 3)]
MODULES = {
    **{name: lambda name=name: getattr(nn, name)(*(2, 3) if "Lazy" in name else (1, 2, 3)) for name in CONVOLUTIONS},
    "conv with weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(1, 2, 3)),
    "conv with spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(1, 2, 3)),
    "conv with the older spectral_norm": lambda: nn.utils.spectral_norm(nn.Conv2d(1, 2, 3)),
    "linear with weight_norm": lambda: parametrizations.weight_norm(nn.Linear(2, 3)),
    "Linear": lambda: nn.Linear(2, 3),
    "LazyLinear": lambda: nn.LazyLinear(3),
    "Embedding": lambda: nn.Embedding(4, 3),
    "LSTM": lambda: nn.LSTM(2, 3),
    "PReLU": nn.PReLU,
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2),
    "Transformer": lambda: nn.Transformer(4, 2, 1, 1, 8),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))


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


@pytest.mark.parametrize(
    "kind_of",
    [
        lambda name, _: "fc" if name.startswith("1.") else "conv",
        lambda _, module: "fc" if isinstance(module, nn.BatchNorm2d) else "conv",
    ],
)
def test_kinds_may_be_chosen_by_name_and_by_module(kind_of):
    found = l2l.parameter_groups(network(), kind_of)
    assert [(group["kind"], len(group["params"])) for group in found] == [("conv", 4), ("fc", 2)]


def test_shared_parameters_come_once_and_frozen_ones_never():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    (group,) = l2l.parameter_groups(model)
    assert [param.shape for param in group["params"]] == [(3, 3), (3,)]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda: network().parameters(), r"\(conv, fc\).* l2l_kit\.parameter_groups"),
        (lambda: l2l.parameter_groups(network(), lambda *_: "attention"), "unknown kind of parameter 'attention'"),
    ],
)
def test_no_kinds_and_kinds_that_the_rule_lacks_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        l2l.LearnedOptimizer(groups(), RULE)
    with pytest.raises(ValueError, match="at least one kind"):
        GroupedRule({})
