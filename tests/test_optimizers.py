"""One contract: the laws that every baseline and every kind of learned rule keeps, and what each is compared with."""

import json

import numpy as np
import pytest
import torch
from schedulefree import AdamWScheduleFreeReference
from small import COORDINATEWISE, COUPLED, RULES, Network

from l2l_kit import optimizers, zoo
from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers import NTMBFGS, Baseline, GroupedBaselines, LSTMRule, baseline
from l2l_kit.tensors import Layout
from l2l_kit.training import trajectory

# Torch7's defaults (section 3 of the paper), and what the kit adds to them.
TORCH = {
    "sgd": (torch.optim.SGD, {}),
    "nag": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-8}),
    "adam": (torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.01}),
    "muon": (torch.optim.Muon, {"weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}),
    "schedule-free": (AdamWScheduleFreeReference, {"betas": (0.9, 0.99), "eps": 0.01, "weight_decay": 0.1, "r": 1.0}),
}
OPTIMIZERS = {
    **{name: baseline(name, 0.1) for name in TORCH},
    "decaying": baseline("adam", 0.1, decay=2.0),
    "cosine": baseline("nag", 0.1, cosine=5.0),
    "baselines in groups": GroupedBaselines({"conv": baseline("adamw", 0.1), "fc": baseline("nag", 0.2)}),
    **{name: make().double() for name, make in RULES.items()},
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
every_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)
SHAPES = {"conv.matrix": (3, 2, 4), "fc.vector": (3, 5), "conv.number": (3,)}


def draw(seed, dtype=torch.float64):
    """Tensors of three tasks."""
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}


def updates(optimizer, change=lambda tensors: tensors, dtype=torch.float64, steps=4):
    """What an optimizer makes of these gradients, step by step, where they and the parameters are changed somehow."""
    params = change(draw(99, dtype))
    state, found = optimizer.init(params), []
    for step in range(steps):
        update, state = optimizer.update(change(draw(step, dtype)), state, params)
        params = {name: tensor + update[name] for name, tensor in params.items()}
        found.append(update)
    return found


def assert_same(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for name, tensor in other.items():
            torch.testing.assert_close(one[name], tensor, rtol=tolerance, atol=tolerance)


@every_optimizer
class TestEveryOptimizer:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_gives_updates_of_the_shape_and_type_of_the_gradients(self, optimizer, dtype):
        found = updates(optimizer, dtype=dtype)
        for update in found:
            assert {name: tuple(tensor.shape) for name, tensor in update.items()} == SHAPES
            assert all(tensor.dtype == dtype and not tensor.requires_grad for tensor in update.values())
            assert all(tensor.isfinite().all() and tensor.count_nonzero() for tensor in update.values())
        assert_same(updates(optimizer, dtype=dtype), found, 0)  # it begins afresh each time
        rough = 0.02 if optimizer is OPTIMIZERS["muon"] else 1e-4  # Muon computes in bfloat16
        for one, other in zip(found, updates(optimizer), strict=True):
            for name, tensor in other.items():
                torch.testing.assert_close(one[name].double(), tensor, rtol=rough, atol=rough)

    def test_does_not_mind_the_order_of_coordinates(self, optimizer):
        if optimizer is OPTIMIZERS["muon"]:
            pytest.skip("it moves matrices as such")
        order = torch.randperm(8, generator=torch.Generator().manual_seed(1))

        def shuffled(tensors):
            matrix = tensors["conv.matrix"]
            return {**tensors, "conv.matrix": matrix.flatten(1)[:, order].view_as(matrix)}

        assert_same(updates(optimizer, shuffled), map(shuffled, updates(optimizer)))

    @pytest.mark.parametrize("task", range(3))
    def test_a_task_does_not_feel_the_others(self, optimizer, task):
        def alone(tensors):
            return {name: tensor[task : task + 1] for name, tensor in tensors.items()}

        assert_same(updates(optimizer, alone), map(alone, updates(optimizer)))

    def test_changes_and_keeps_no_tensor_that_it_was_given_and_gives_none_that_it_keeps(self, optimizer):
        """Buffers of gradients and parameters are used again, and so are updates."""
        buffers, found = ({name: torch.empty_like(tensor) for name, tensor in draw(0).items()} for _ in range(2)), []
        gradients, params = buffers
        for name, tensor in draw(99).items():
            params[name].copy_(tensor)
        state = optimizer.init(params)
        for step in range(4):
            for name, tensor in draw(step).items():
                gradients[name].copy_(tensor)
            before = {name: tensor.clone() for name, tensor in params.items()}
            update, state = optimizer.update(gradients, state, params)
            assert_same([gradients, params], [draw(step), before], 0)
            found.append({name: tensor.clone() for name, tensor in update.items()})
            for name, tensor in params.items():
                tensor += update[name]
                update[name].fill_(torch.nan)
        assert_same(found, updates(optimizer))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_coordinate_feels_the_others_where_they_are_coupled(name):
    def changed(tensors):
        matrix = tensors["conv.matrix"].clone()
        matrix[:, 0, 0] += 1
        return {**tensors, "conv.matrix": matrix}

    before, after = updates(OPTIMIZERS[name])[-1], updates(OPTIMIZERS[name], changed)[-1]
    felt = (before["conv.matrix"] != after["conv.matrix"]).flatten(1)[:, 1:]
    assert felt.all() if name in COUPLED or name == "muon" else not felt.any()
    if name in RULES:
        assert OPTIMIZERS[name].coordinatewise == (name in COORDINATEWISE)


def test_muon_moves_the_kernels_of_a_convolution_as_matrices_with_a_row_for_each_output_channel():
    draws = torch.Generator().manual_seed(0)
    kernels, *gradients = torch.randn(4, 3, 4, 2, 5, 5, generator=draws)
    optimizer, params = baseline("muon", 0.1), {"conv.weight": kernels}
    state = optimizer.init(params)
    mine = [torch.nn.Parameter(kernel.reshape(4, 50).clone()) for kernel in kernels]
    kind, settings = TORCH["muon"]
    movers = [kind([matrix], lr=0.1, **settings) for matrix in mine]
    for gradient in gradients:
        update, state = optimizer.update({"conv.weight": gradient}, state, params)
        params = {"conv.weight": params["conv.weight"] + update["conv.weight"]}
        for n, matrix in enumerate(mine):
            matrix.grad = gradient[n].reshape(4, 50)
            movers[n].step()
            torch.testing.assert_close(params["conv.weight"][n].reshape(4, 50), matrix.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TORCH)
def test_a_baseline_on_a_batch_is_torch_optim_on_each_task(name):
    """Here the parameters themselves are moved, one task at a time, and autograd gives their gradients."""
    kind, settings = TORCH[name]
    tasks, lr = Network(), 0.03
    found = [point.params for point in trajectory(baseline(name, lr), tasks, 30)]
    params = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in tasks.initial_params.items()}
    for n in range(3):
        mine = [torch.nn.Parameter(tensor[n].clone()) for tensor in params.values()]
        if kind is torch.optim.Muon:
            movers = [kind(mine[:1], lr=lr, **settings), torch.optim.AdamW(mine[1:], lr=lr)]
        else:
            movers = [kind(mine, lr=lr, **settings)]
        if kind is AdamWScheduleFreeReference:
            movers[0].train()
        for step in range(31):
            there = torch.cat([param.detach().flatten() for param in mine])
            torch.testing.assert_close(found[step][n], there, rtol=1e-12, atol=1e-12)
            whole = {name: tensor.detach().clone() for name, tensor in params.items()}
            for tensor, param in zip(whole.values(), mine, strict=True):
                tensor[n] = param
            losses = tasks.losses({name: tensor.requires_grad_() for name, tensor in whole.items()}, step)
            for param, gradient in zip(mine, torch.autograd.grad(losses[n], list(whole.values())), strict=True):
                param.grad = gradient[n]
            for mover in movers:
                mover.step()
        assert (there - found[0][n]).norm() > 0.1  # it went somewhere


def cosine_of_torch(steps):
    """The factors of torch's own cosine schedule from 1 to 0 over so many steps; it stays at 0 afterwards."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule, factors = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps), []
    for _ in range(steps + 1):
        factors += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return factors


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ({"decay": 4.0}, [(1 + step / 4) ** -0.5 for step in range(10)]),
        ({"cosine": 7.0}, [*cosine_of_torch(7), 0.0, 0.0]),
        (
            {"decay": 4.0, "cosine": 7.0},
            [(1 + step / 4) ** -0.5 * each for step, each in enumerate([*cosine_of_torch(7), 0.0, 0.0])],
        ),
    ],
    ids=["decay", "cosine", "both"],
)
def test_a_learning_rate_follows_its_schedule(schedule, factors):
    rule, params = baseline("sgd", 0.5, **schedule), {"x": torch.zeros(2, 3)}
    state = rule.init(params)
    for factor in factors:
        update, state = rule.update({"x": torch.ones(2, 3)}, state, params)
        torch.testing.assert_close(update["x"], torch.full((2, 3), -0.5 * factor))


@pytest.mark.parametrize("name", ["groups", "baselines in groups"])
def test_in_groups_each_kind_is_moved_by_its_own(name):
    expected = {
        kind: updates(each, lambda tensors, kind=kind: {n: t for n, t in tensors.items() if n.startswith(kind)})
        for kind, each in OPTIMIZERS[name].groups.items()
    }
    for found, conv, fc in zip(updates(OPTIMIZERS[name]), *expected.values(), strict=True):
        assert list(found) == list(SHAPES)
        assert all(torch.equal(tensor, found[name]) for name, tensor in (conv | fc).items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_scale", 1),
        ("forget_bias", 4),
        ("forget_bias", [1, 4]),
        ("preprocessing", {"name": "scale", "factor": 1000}),
        ("preprocessing", {"name": "log-sign", "p": 10}),
    ],
)
def test_a_rule_has_one_fingerprint_however_its_numbers_are_written(name, value):
    """A recipe that said p = 10 where the default had been 10.0 refused its own checkpoint."""
    as_floats = json.loads(json.dumps(value), parse_int=float)
    assert LSTMRule(**{name: value}).fingerprint() == LSTMRule(**{name: as_floats}).fingerprint()


@pytest.mark.parametrize("bias", [np.float32(4.0), np.array([1.0, 4.0])], ids=["number", "pair"])
def test_numbers_may_be_numpys(bias):
    assert LSTMRule(forget_bias=bias).fingerprint() == LSTMRule(forget_bias=bias.tolist()).fingerprint()


@every_rule
class TestEveryLearnedRule:
    def test_its_configuration_makes_it_again_with_weights_that_follow_the_seed_alone(self, make):
        torch.manual_seed(1)
        rule = make(seed=3)
        before = torch.manual_seed(2).get_state()
        again, other = optimizers.make(json.loads(json.dumps(rule.config()))), make(seed=7)
        assert torch.equal(torch.get_rng_state(), before)
        assert type(again) is type(rule)
        assert again.config() == rule.config()
        assert again.fingerprint() == rule.fingerprint() != other.fingerprint()
        for name, weight in rule.state_dict().items():
            assert weight.isfinite().all()
            assert torch.equal(again.state_dict()[name], weight)
            assert name.endswith("output.bias") or not torch.equal(other.state_dict()[name], weight)

    def test_comes_back_from_a_file(self, make, tmp_path):
        rule = make()
        with torch.no_grad():
            for weight in rule.parameters():
                weight += 0.25
        loaded = zoo.load(zoo.save(rule, tmp_path / "rule"))
        assert loaded.config() == rule.config()
        assert_same(updates(loaded), updates(rule), 0)

    def test_its_parts_share_the_coordinates_out(self, make):
        """Each coordinate has one network, and weights are named as in the whole."""
        parts = make().parts(Layout.of(draw(0)))
        columns = torch.cat([torch.arange(14)[part.columns] for part in parts])
        assert columns.sort().values.tolist() == list(range(14))
        assert sum(sum(part.sizes) for part in parts) == 14
        weights = [part.prefix + name for part in parts for name, _ in part.network.named_parameters()]
        assert weights == [name for name, _ in make().named_parameters()]


def test_states_that_were_saved_before_there_were_averaging_and_odd_rules_belong_to_the_same_rule():
    assert not {"global_averaging_cells", "odd"} & LSTMRule().config().keys()


def test_has_the_size_of_the_paper():
    """Two layers of 20: 4·20·(1+20) + 4·20 and 4·20·(20+20) + 4·20 weights, and 20 + 1 of the output."""
    optimizer = LSTMRule()
    assert sum(weight.numel() for weight in optimizer.parameters()) == 1760 + 3280 + 21
    assert optimizer.initial_state(7).cell.shape == (2, 20, 7)


def test_memories_are_spread_between_two_forget_biases():
    bias = LSTMRule(hidden_size=200, forget_bias=(0.0, 7.0)).layers[0].bias
    assert bias[200:400].min() < 1 < 6 < bias[200:400].max()
    assert bias[:200].mean() < -1


def test_initial_weights_are_those_of_torchs_lstm_and_a_forget_bias_is_added_where_it_belongs():
    """Uniform within 1/√hidden, as torch's documentation has it; the gates are i, f, g and o."""
    layer = LSTMRule().layers[0]
    for values in (layer.weight, layer.bias):
        assert 0.9 < 20**0.5 * values.abs().max() <= 2
    assert 0.95 < 20**0.5 * layer.weight.abs().max() <= 1
    difference = LSTMRule(5, forget_bias=2.0).layers[0].bias - LSTMRule(5).layers[0].bias
    torch.testing.assert_close(difference, torch.tensor([0.0] * 5 + [2.0] * 5 + [0.0] * 10))


NAN, INF = float("nan"), float("inf")
WRONG = [
    *((LSTMRule, "hidden_size", value) for value in (0, 2.5, None)),
    *((LSTMRule, "output_scale", value) for value in (0, -0.1, NAN)),
    *((LSTMRule, "forget_bias", value) for value in (INF, (0.0, 1.0, 2.0))),
    *((LSTMRule, "global_averaging_cells", value) for value in (21, -1, 1.5)),
    *((NTMBFGS, name, 0) for name in ("hidden_size", "read_heads", "write_heads", "history")),
    *((Baseline, name, value) for name in ("lr", "decay", "cosine") for value in (0, NAN, INF)),
]


@pytest.mark.parametrize(("kind", "name", "value"), WRONG)
def test_arguments_that_make_no_sense_are_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=f"{name} .*got "):
        kind(**({"name": "adam", "lr": 1.0} if kind is Baseline else {}) | {name: value})


@pytest.mark.parametrize(
    ("ask", "near"),
    [
        (lambda: baseline("adan", 0.1), "adam"),
        (lambda: baseline("rms-prop", 0.1), "rmsprop"),
        (lambda: optimizers.make({"kind": "LSTM2"}), "lstm"),
        (lambda: LSTMRule(preprocessing="Log_Sign"), "log-sign"),
        (lambda: OPTIMIZERS["groups"].init({"cnv.weight": torch.zeros(1, 2)}), "conv"),
        (lambda: optimizers.make({"hiden_size": 20}), "hidden_size"),
    ],
)
def test_an_unknown_name_gives_the_near_match(ask, near):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        ask()
    assert baseline("Adam", 0.1) == baseline("adam", 0.1)
