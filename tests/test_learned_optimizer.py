"""LearnedOptimizer moves models, as people have them (lesson 9), by its rule; what it keeps and what it refuses."""

import copy

import pytest
import torch
from small import assert_close, same_bits
from torch import nn

from l2l_kit import LearnedOptimizer, learned_optimizer, parameter_groups, zoo
from l2l_kit.errors import WeightsFileError
from l2l_kit.optimizers import NTMBFGS, GroupedRule, LSTMRule

TINY = {"hidden_size": 4, "preprocessing": "log-sign", "output_scale": 0.01}
RULES = {
    "LSTM": LSTMRule(**TINY),
    "two LSTMs": GroupedRule({kind: {**TINY, "seed": seed} for seed, kind in enumerate(("conv", "fc"))}),
    "averaging cells": LSTMRule(**TINY, global_averaging_cells=1),
    "NTM-BFGS": NTMBFGS(**TINY, history=2),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
each_network = pytest.mark.parametrize("rule", [RULES["LSTM"], RULES["NTM-BFGS"]], ids=["LSTM", "NTM-BFGS"])


class Tied(nn.Module):
    """Reads letters and predicts the next one, with one matrix for both."""

    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(7, 6)
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.letters.weight

    def forward(self, inputs):
        return self.out(self.letters(inputs).mean(dim=1))


def convolutional():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4 * 16, 5), nn.LayerNorm(5), nn.Linear(5, 7))


def transformer():
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(8 * 5, 7))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MODELS = {
    "convolutions, linear and norm layers": (convolutional, draw(8, 3, 6, 6)),
    "a transformer block": (transformer, draw(8, 5, 8)),
    "tied weights": (Tied, draw(8, 4).mul(100).long() % 7),
}


class Run:
    """A model, its inputs and its optimizer."""

    def __init__(self, name, rule, model=None, **options):
        torch.manual_seed(0)
        make, self.inputs = MODELS[name]
        self.model = model or make()
        groups = parameter_groups(self.model)
        self.optimizer, self.states = LearnedOptimizer(groups, rule, **options), {}

    def step(self, count=3, *, parts=1, clip=None):
        """Weights after so many steps."""
        targets = torch.arange(8) % 7
        for _ in range(count):
            self.optimizer.zero_grad()
            for some in torch.arange(8).chunk(parts):
                (nn.functional.cross_entropy(self.model(self.inputs[some]), targets[some]) / parts).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
        return self.weights()

    def weights(self):
        return [param.detach().clone() for param in self.model.parameters()]

    def kept(self):
        return [values for state in self.optimizer.state.values() for values in state.values()]


def reference(run, rule, clip):
    """One step of a rule, written out."""
    run.model.zero_grad()
    nn.functional.cross_entropy(run.model(run.inputs), torch.arange(8) % 7).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), clip)
    kinds = {group["kind"]: group["params"] for group in run.optimizer.param_groups}
    if not isinstance(rule, GroupedRule):
        kinds = {"fc": [param for params in kinds.values() for param in params]}
    for kind, params in kinds.items():
        network, sizes = rule.network_for(kind), [param.numel() for param in params]
        gradient = torch.cat([param.grad.flatten() for param in params])
        state = run.states.get(kind, network.initial_state(len(gradient)))
        update, run.states[kind] = network.step(gradient, state)
        with torch.no_grad():
            for param, piece in zip(params, update.split(sizes), strict=True):
                param += piece.view_as(param)


class TestModels:
    @each_rule
    @pytest.mark.parametrize(
        ("name", "parts", "clip"),
        [*((name, 1, None) for name in MODELS), ("a transformer block", 1, 1e-3), ("tied weights", 4, 1e-3)],
    )
    def test_every_parameter_is_moved_by_the_rule(self, name, parts, clip, rule):
        """By accumulated and clipped gradients too; tied ones once, by the gradient of all their uses."""
        run, twin = Run(name, rule), Run(name, rule)
        before, found = run.weights(), run.step(parts=parts, clip=clip)
        for _ in range(3):
            reference(twin, rule, clip)
        assert_close(found, twin.weights(), rtol=1e-3, atol=1e-4 if parts > 1 else 1e-5)
        assert not any(torch.equal(one, other) for one, other in zip(found, before, strict=True))

    @each_rule
    def test_a_state_of_half_precision_takes_half_the_memory_and_goes_on_after_it_was_saved(self, rule):
        """What the rule remembers is rounded, but not much of what it does."""
        name = "a transformer block"
        whole, half = (Run(name, rule, state_dtype=dtype) for dtype in (None, torch.bfloat16))
        before, exact, rounded = (
            torch.cat([w.flatten() for w in ws]) for ws in (whole.weights(), whole.step(), half.step())
        )
        assert 0 < (exact - rounded).norm() < 0.05 * (exact - before).norm()
        assert sum(t.nbytes for t in whole.kept()) == 2 * sum(t.nbytes for t in half.kept())
        again = Run(name, rule, copy.deepcopy(half.model), state_dtype=torch.bfloat16)
        again.optimizer.load_state_dict(half.optimizer.state_dict())
        assert same_bits(again.step(), half.step())  # which could not be if they shared their states
        assert {values.dtype for values in again.kept()} == {torch.bfloat16}


def gradient_descent(lr):
    """A rule that is gradient descent: one cell, gates open, nothing kept, θ ← θ − lr ∇f up to O((1e-3 ∇f)²)."""
    rule, open_wide, shut, small = LSTMRule(hidden_size=1, num_layers=1), 40.0, -40.0, 1e-3
    with torch.no_grad():
        rule.layers[0].weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [small, 0.0]]))
        rule.layers[0].bias.copy_(torch.tensor([open_wide, shut, open_wide, 0.0]))
        rule.output.weight.fill_(-lr / small)
    return rule


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_changing_one_line_is_enough(device):
    """The rule that is gradient descent moves a model as torch.optim.SGD does, by groups with learning rates."""
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).to(device)
    found, losses = [], []
    for make in (
        lambda groups: torch.optim.SGD([{**group, "lr": group.get("lr", 1.0) * 0.1} for group in groups]),
        lambda groups: LearnedOptimizer(groups, gradient_descent(0.1)),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(device)
        optimizer = make([{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2].parameters()}])
        for _ in range(30):
            optimizer.zero_grad()
            losses.append(nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True)))
            losses[-1].backward()
            optimizer.step()
        found.append([param.detach() for param in model.parameters()])
    assert losses[-1] < 0.5 * losses[30]
    assert_close(*found, rtol=1e-3, atol=1e-4)


def vector(steps, optimizer_of, size=40):
    """A parameter after steps by drawn gradients, and its optimizer."""
    param = nn.Parameter(torch.linspace(-1, 1, size).view(-1, 5))
    optimizer, draws = optimizer_of([param]), torch.Generator().manual_seed(0)
    for _ in range(steps):
        param.grad = torch.randn(param.shape, generator=draws)
        given, before = param.grad.clone(), torch.get_rng_state()
        assert optimizer.step() is None
        assert torch.equal(param.grad, given)
        assert torch.equal(torch.get_rng_state(), before), "the global generator is not the kit's to use"
    return param.detach(), optimizer


@pytest.mark.parametrize("chunk", [1, 7, 8, 100])
def test_a_parameter_larger_than_a_chunk_moves_as_in_one(monkeypatch, chunk):
    whole, optimizer = vector(4, lambda params: LearnedOptimizer(params, RULES["LSTM"]))
    monkeypatch.setattr(learned_optimizer, "CHUNK", chunk)
    chunked, other = vector(4, lambda params: LearnedOptimizer(params, RULES["LSTM"]))
    assert_close([chunked], [whole], rtol=1e-6, atol=1e-6)
    for one, two in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert_close(one.values(), two.values(), rtol=1e-5, atol=1e-6)


def test_a_rule_comes_by_itself_by_path_and_by_name_and_is_a_copy(tmp_path, monkeypatch):
    """Training the rule on does not change an optimizer that uses it, nor the other way round."""
    rule = LSTMRule(**TINY)
    path = zoo.save(rule, tmp_path / "mine")
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    expected, _ = vector(3, lambda params: LearnedOptimizer(params, LSTMRule(**TINY)))

    def spoiled(params):
        optimizer = LearnedOptimizer(params, rule)
        with torch.no_grad():
            rule.output.weight.zero_()
        return optimizer

    for make in (spoiled, *(lambda params, which=which: LearnedOptimizer(params, which) for which in (path, "mine"))):
        assert torch.equal(vector(3, make)[0], expected)
    assert all(weight.requires_grad for weight in rule.parameters())


def test_a_closure_is_called_once_with_gradients_and_its_loss_returned():
    param, calls = nn.Parameter(torch.ones(3)), []
    optimizer = LearnedOptimizer([param], RULES["LSTM"])

    def closure():
        optimizer.zero_grad()
        calls.append(param.square().sum())
        calls[-1].backward()
        return calls[-1]

    with torch.no_grad():
        assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    assert (param != 1).all()


class TestStates:
    @pytest.mark.parametrize("other", [{"seed": 1}, {"hidden_size": 5}, {"output_scale": 1.0}, "weights", "Adam"])
    def test_of_another_rule_is_refused(self, other):
        foreign = LSTMRule(**{**TINY, **(other if isinstance(other, dict) else {})})
        if other == "weights":
            foreign.output.bias.data += 1e-6
        make = torch.optim.Adam if other == "Adam" else lambda params: LearnedOptimizer(params, foreign)
        _, optimizer = vector(2, make)
        mine = LearnedOptimizer([nn.Parameter(torch.zeros(8, 5))], RULES["LSTM"])
        owner = "another optimizer" if other == "Adam" else r"another learned rule \(\w+, not"
        with pytest.raises(WeightsFileError, match=f"belongs to {owner}"):
            mine.load_state_dict(optimizer.state_dict())
        assert not mine.state
        if other != "Adam":
            with pytest.raises(ValueError, match="another learned rule"):
                LearnedOptimizer(optimizer.param_groups, RULES["LSTM"])

    @each_network
    def test_of_the_first_version_of_the_kit_goes_on(self, rule):
        """It had one axis for all coordinates of a parameter, and another name for what is now the fingerprint."""
        run = Run("a transformer block", rule)
        run.step()
        state = copy.deepcopy(run.optimizer.state_dict())
        for group in state["param_groups"]:
            group["rule"] = group.pop("fingerprint")
            del group["weight_decay"]
        params = [param for group in run.optimizer.param_groups for param in group["params"]]
        for index, param in enumerate(params):
            for name, values in state["state"][index].items():
                leading = values.shape[: values.dim() - param.dim()]
                state["state"][index][name] = values.reshape(*leading, param.numel())
        again = Run("a transformer block", rule, copy.deepcopy(run.model))
        again.optimizer.load_state_dict(state)
        assert same_bits(again.step(), run.step())
        assert again.optimizer.state_dict()["param_groups"] == run.optimizer.state_dict()["param_groups"]

    def test_of_a_parameter_without_storage_has_none_either(self):
        """On "meta", as for planning memory: shapes alone."""
        param = nn.Parameter(torch.empty(3, 2, device="meta"))
        param.grad = torch.empty(3, 2, device="meta")
        optimizer = LearnedOptimizer([param], RULES["LSTM"])
        optimizer.step()
        cell = optimizer.state[param]["cell"]
        assert (cell.device.type, cell.shape) == ("meta", (2, 4, 3, 2))

    def test_that_was_only_looked_at_is_none(self):
        """As for Adam: `state` is a defaultdict."""
        moved = []
        for look in (True, False):
            param = nn.Parameter(torch.ones(5))
            optimizer = LearnedOptimizer([param], RULES["LSTM"])
            if look:
                assert optimizer.state[param] == {}
                optimizer.load_state_dict(optimizer.state_dict())
            param.grad = torch.ones_like(param)
            optimizer.step()
            moved.append(param.detach())
        assert torch.equal(*moved)

    @pytest.mark.parametrize("shapes", [[(2, 1), (2,)], [(3, 4), (2,)], [(7,), (2, 1)]])
    def test_of_parameters_of_other_shapes_is_refused_and_nothing_changed(self, shapes):
        def optimizer(shapes, lr):
            params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
            for param in params:
                param.grad = torch.ones_like(param)
            made = LearnedOptimizer(params, RULES["LSTM"], lr=lr)
            made.step()
            return made

        saved, mine = optimizer([(2,), (2, 1)], 1.0), optimizer(shapes, 0.5)
        before = copy.deepcopy(mine.state_dict())
        with pytest.raises(WeightsFileError, match=r"the state of parameter [01] is of shape"):
            mine.load_state_dict(saved.state_dict())
        torch.testing.assert_close(mine.state_dict()["state"], before["state"], rtol=0, atol=0)
        assert mine.state_dict()["param_groups"] == before["param_groups"]


class TestRefusals:
    @pytest.mark.parametrize(
        "wrong",
        [
            *({"lr": lr} for lr in (torch.nan, torch.inf, None, "x")),
            *({"state_dtype": t} for t in (torch.int8, "bf16")),
        ],
    )
    def test_an_option_that_makes_no_sense(self, wrong):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .*, got"):
            LearnedOptimizer([nn.Parameter(torch.ones(3))], RULES["LSTM"], **wrong)

    @pytest.mark.parametrize("lr", [torch.tensor([0.5]), torch.tensor(0.5, requires_grad=True)], ids=["one", "graph"])
    def test_a_learning_rate_may_be_a_tensor(self, lr):
        moved = []
        for each in (lr, 0.5):
            param = nn.Parameter(torch.ones(3))
            param.grad = torch.ones(3)
            LearnedOptimizer([param], RULES["LSTM"], lr=each, weight_decay=0.1).step()
            moved.append(param)
        assert torch.equal(*moved)

    def test_a_model_in_the_place_of_its_parameters(self):
        with pytest.raises(TypeError, match=r"expected parameters, as of model\.parameters\(\), got Linear"):
            LearnedOptimizer(nn.Linear(2, 1), RULES["LSTM"])

    def test_a_learning_rate_in_the_place_of_the_rule(self):
        """Where Adam has it."""
        with pytest.raises(TypeError, match=r"got 0.001. A learning rate is given as lr="):
            LearnedOptimizer([nn.Parameter(torch.ones(3))], 1e-3)

    @pytest.mark.parametrize(
        "wrong",
        [{"lr": -1.0}, {"weight_decay": -1.0}, {"state_dtype": torch.bfloat16}, {"rule": RULES["averaging cells"]}],
        ids=["lr", "weight_decay", "state_dtype", "rule"],
    )
    def test_a_group_that_is_refused_is_not_kept(self, wrong):
        optimizer = LearnedOptimizer([nn.Parameter(torch.ones(3))], RULES["LSTM"])
        with pytest.raises(ValueError, match=next(iter(wrong))):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], **wrong})
        assert len(optimizer.param_groups) == 1


@each_rule
def test_a_run_goes_on_before_a_lazy_model_knows_its_shapes(rule):
    torch.manual_seed(0)
    inputs, models, runs = torch.randn(4, 2), [nn.Sequential(nn.LazyLinear(3)) for _ in range(2)], []
    for model in models:
        groups = [{"params": model.parameters(), "kind": "fc"}]
        runs.append(LearnedOptimizer(groups, rule))

    def train(model, optimizer):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()

    train(models[0], runs[0])
    runs[1].load_state_dict(runs[0].state_dict())
    models[1].load_state_dict(models[0].state_dict())
    for model, optimizer in zip(models, runs, strict=True):
        train(model, optimizer)
    assert all(map(torch.equal, *(model.parameters() for model in models)))
