"""Optimizers made of several: each kind of parameter has an LSTM of its own, everywhere."""

import json
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn

import l2l_kit as l2l
from l2l_kit import optimizers, zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.optimizers import GroupedLSTMs, LSTMOptimizer
from l2l_kit.tensors import Layout

CONV = {"hidden_size": 4, "preprocessing": "log-sign", "output_scale": 0.1, "seed": 1}
FC = {"hidden_size": 3, "num_layers": 1, "seed": 2}


def groups():
    return GroupedLSTMs({"conv": CONV, "fc": FC})


def gradients(seed, n=2):
    draws = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight0": (3, 2), "fc.weight0": (4,), "conv.weight1": (5,), "fc.bias0": ()}
    return {name: torch.randn(n, *shape, generator=draws) for name, shape in shapes.items()}


class TestRule:
    def test_each_kind_is_moved_by_its_own_lstm(self):
        rule, alone = groups(), {"conv": LSTMOptimizer(**CONV), "fc": LSTMOptimizer(**FC)}
        state = rule.init(gradients(0))
        states = {kind: lstm.init(_only(gradients(0), kind)) for kind, lstm in alone.items()}
        for step in range(3):
            updates, state = rule.update(gradients(step), state)
            assert list(updates) == list(gradients(0))
            for kind, lstm in alone.items():
                expected, states[kind] = lstm.update(_only(gradients(step), kind), states[kind])
                for name, tensor in expected.items():
                    assert torch.equal(updates[name], tensor)

    def test_parts_share_the_coordinates_out(self):
        conv, fc = groups().parts(Layout.of(gradients(0)))
        assert (conv.columns.tolist(), conv.sizes) == ([*range(6), *range(10, 15)], [6, 5])
        assert (fc.columns.tolist(), fc.sizes) == ([6, 7, 8, 9, 15], [4, 1])

    def test_a_kind_without_an_lstm_is_refused(self):
        wrong = {"cnv.weight": torch.zeros(1, 2)}
        for ask in (lambda: groups().init(wrong), lambda: groups().parts(Layout.of(wrong))):
            with pytest.raises(UnknownNameError, match=r"unknown kind of parameter 'cnv'\. Did you mean 'conv'"):
                ask()

    def test_there_must_be_a_group(self):
        with pytest.raises(ValueError, match="at least one kind of parameter"):
            GroupedLSTMs({})

    def test_configuration_survives_json(self):
        again = optimizers.make(json.loads(json.dumps(groups().config())))
        assert isinstance(again, GroupedLSTMs)
        assert again.config() == groups().config()
        for name, tensor in groups().state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)


def _only(tensors, kind):
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}


class TestZoo:
    def test_it_is_saved_and_loaded(self, tmp_path):
        rule = groups()
        with torch.no_grad():
            rule.network_for("fc").output.bias.fill_(0.5)
        again = l2l.load(zoo.save(rule, tmp_path / "mine"))
        for name, tensor in rule.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)

    def test_a_broken_one_is_not_saved(self, tmp_path):
        rule = groups()
        with torch.no_grad():
            rule.network_for("conv").output.bias.fill_(float("nan"))
        with pytest.raises(WeightsFileError, match=r"groups\.conv\.output\.bias is not finite"):
            zoo.save(rule, tmp_path / "mine")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4), nn.LayerNorm(4)
    )


CONVOLUTIONS = {f"Conv{transposed}{axes}d" for transposed in ("", "Transpose") for axes in (1, 2, 3)}
ARGUMENTS = {
    **dict.fromkeys(CONVOLUTIONS, (1, 2, 3)),
    **{f"Lazy{name}": (2, 3) for name in CONVOLUTIONS},
    "Linear": (2, 3),
    "LazyLinear": (3,),
    "NonDynamicallyQuantizableLinear": (2, 3),
    "Bilinear": (2, 2, 3),
    "Embedding": (4, 3),
    "EmbeddingBag": (4, 3),
    "MultiheadAttention": (4, 2),
    **dict.fromkeys(("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"), (2, 3)),
    "RNNBase": ("LSTM", 2, 3),
    "RNNCellBase": (2, 3, True, 4),
    "PReLU": (),
    "RMSNorm": (4,),
    "LayerNorm": (4,),
    "GroupNorm": (2, 4),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"), (4,)),
    **{f"LazyBatchNorm{axes}d": () for axes in (1, 2, 3)},
    "Transformer": (4, 2, 1, 1, 8),
    "TransformerEncoderLayer": (4, 2, 8),
    "TransformerDecoderLayer": (4, 2, 8),
    "AdaptiveLogSoftmaxWithLoss": (4, 6, [2]),
}


def instance_norm(axes):
    return lambda: getattr(nn, f"InstanceNorm{axes}d")(4, affine=True)


def stacked(kind, layer):
    return lambda: getattr(nn, kind)(getattr(nn, layer)(4, 2, 8), 2)


WITH_PARAMETERS = {
    **{name: partial(getattr(nn, name), *arguments) for name, arguments in ARGUMENTS.items() if hasattr(nn, name)},
    **{f"InstanceNorm{axes}d": instance_norm(axes) for axes in (1, 2, 3)},
    **{f"LazyInstanceNorm{axes}d": partial(getattr(nn, f"LazyInstanceNorm{axes}d"), affine=True) for axes in (1, 2, 3)},
    "TransformerEncoder": stacked("TransformerEncoder", "TransformerEncoderLayer"),
    "TransformerDecoder": stacked("TransformerDecoder", "TransformerDecoderLayer"),
    "conv with weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)),
    "conv with spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 2, 3)),
    "conv with the older spectral_norm": lambda: nn.utils.spectral_norm(nn.Conv2d(1, 2, 3)),
    "linear with weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
}


def makes_parameters(kind):
    """Whether its constructor, or that of a class that it derives from, names any class of parameters."""
    constructors = [vars(base)["__init__"] for base in kind.mro() if "__init__" in vars(base) and base is not object]
    return any("Parameter" in name for constructor in constructors for name in constructor.__code__.co_names)


class TestOnOnesOwnModel:
    def test_kernels_of_convolutions_are_conv_and_the_rest_is_fc(self):
        model = network()
        kinds = {group["kind"]: group["params"] for group in l2l.parameter_groups(model)}
        assert list(kinds) == ["conv", "fc"]
        assert [id(param) for param in kinds["conv"]] == [id(model[0].weight)]
        assert {id(param) for param in kinds["fc"]} == {id(param) for param in model.parameters()} - {
            id(model[0].weight)
        }

    def test_kinds_may_be_chosen_by_name(self):
        found = l2l.parameter_groups(network(), lambda name, module: "fc" if name.startswith("1.") else "conv")
        assert [(group["kind"], len(group["params"])) for group in found] == [("conv", 6), ("fc", 2)]

    def test_kinds_may_be_chosen_by_module(self):
        found = l2l.parameter_groups(
            network(), lambda _, module: "fc" if isinstance(module, nn.BatchNorm2d) else "conv"
        )
        assert [(group["kind"], len(group["params"])) for group in found] == [("conv", 6), ("fc", 2)]

    def test_shared_parameters_come_once_and_frozen_ones_never(self):
        model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        model[1].weight = model[0].weight
        model[0].bias.requires_grad_(False)
        (group,) = l2l.parameter_groups(model)
        assert [param.shape for param in group["params"]] == [(3, 3), (3,)]

    @pytest.mark.parametrize("name", sorted(WITH_PARAMETERS))
    def test_every_module_of_torch_has_a_kind(self, name):
        """All of its parameters, each once, and an optimizer takes them."""
        module = WITH_PARAMETERS[name]()
        found = l2l.parameter_groups(module)
        kinds = {param: group["kind"] for group in found for param in group["params"]}
        assert set(kinds) == set(module.parameters())
        assert sum(len(group["params"]) for group in found) == len(kinds)
        for param_name, param in module.named_parameters():
            kernel = "conv" in name.lower() and "bias" not in param_name
            assert kinds[param] == ("conv" if kernel else "fc")
        l2l.LearnedOptimizer(found, groups())

    def test_no_module_of_torch_was_forgotten(self):
        classes = {name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
        found = {name for name in classes if makes_parameters(getattr(nn, name))}
        assert found - {"ParameterList", "ParameterDict"} <= set(WITH_PARAMETERS)
        assert {"Conv1d", "BatchNorm2d", "LSTM", "Embedding", "MultiheadAttention"} <= found

    def test_each_kind_is_moved_by_its_own_lstm(self):
        model, twin = network(), network()
        optimizer = l2l.LearnedOptimizer(l2l.parameter_groups(model), groups())
        expected = [
            l2l.LearnedOptimizer(group["params"], LSTMOptimizer(**arguments))
            for group, arguments in zip(l2l.parameter_groups(twin), (CONV, FC), strict=True)
        ]
        images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            for one, steps in ((model, [optimizer]), (twin, expected)):
                one.zero_grad()
                one(images).square().mean().backward()
                for step in steps:
                    step.step()
        for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(mine, other)
        assert not torch.equal(next(model.parameters()), next(network().parameters()))

    def test_without_kinds_it_says_what_to_do(self):
        with pytest.raises(
            ValueError, match=r"\(conv, fc\), so each parameter must say its kind: l2l_kit\.parameter_groups"
        ):
            l2l.LearnedOptimizer(network().parameters(), groups())

    def test_a_kind_that_the_rule_does_not_have_is_refused(self):
        found = l2l.parameter_groups(network(), lambda name, module: "attention")
        with pytest.raises(UnknownNameError, match="attention"):
            l2l.LearnedOptimizer(found, groups())

    def test_a_rule_of_one_takes_any_kind(self):
        model = network()
        optimizer = l2l.LearnedOptimizer(l2l.parameter_groups(model), LSTMOptimizer(**CONV))
        model(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))).pow(3).mean().backward()
        before = next(model.parameters()).clone()
        optimizer.step()
        assert not torch.equal(next(model.parameters()), before)


def test_meta_training_trains_both(tmp_path):
    """On problems whose parameters have kinds; it can be interrupted, and its loss falls."""
    from tests.test_meta_gradient import Layers

    @dataclass(frozen=True)
    class Problem(l2l.problems.Problem):
        name: ClassVar[str] = "layers"

        def sample(self, num_tasks, generator, device=None):
            return Layers(num_tasks, seed=int(torch.randint(1000, (), generator=generator)))

    rule = groups().double()
    before = {name: tensor.clone() for name, tensor in rule.state_dict().items()}
    settings = {"horizon": 10, "unroll": 5, "epochs": 3, "episodes_per_epoch": 10, "batch_size": 8, "meta_lr": 0.02}
    history = l2l.meta_train(rule, Problem(), validation_tasks=8, progress=False, **settings)
    assert history.best.validation_loss < 0.7 * history.records[0].validation_loss
    for name, tensor in rule.state_dict().items():
        assert not torch.equal(tensor, before[name])
