"""Laws of torch.optim: each is tried on torch.optim.Adam, as the control, and on every kind of rule that is shipped."""

import copy
import io
import itertools
import pickle
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import l2l_kit as l2l
from l2l_kit import LearnedOptimizer, learned_optimizer, parameter_groups

ADAM = "torch.optim.Adam"


def kinds_of_rules():
    """One of each kind of architecture and input: the others differ by their weights and the factor on their output."""
    found = {}
    for name in l2l.zoo.names():
        config = l2l.zoo.card(name)["optimizer"]
        some = config["groups"]["conv"] if "groups" in config else config
        kind = config["kind"], some["preprocessing"]["name"], "global_averaging_cells" in some
        found.setdefault(kind, name)
    return sorted(found.values())


RULES = kinds_of_rules()
TOGETHER = [name for name in RULES if not l2l.load(name).coordinatewise]
each = pytest.mark.parametrize("which", [ADAM, *RULES])
each_alone = pytest.mark.parametrize("which", [ADAM, *(name for name in RULES if name not in TOGETHER)])
each_rule = pytest.mark.parametrize("which", RULES)


def optimizer_of(which, model, **options):
    if which == ADAM:
        return torch.optim.Adam(model.parameters(), **{"lr": 0.01, **options})
    return LearnedOptimizer(parameter_groups(model), which, **options)


def of_tensors(which, *params, **options):
    """With parameters that belong to no module."""
    group = {"params": params} if which == ADAM else {"params": params, "kind": "fc"}
    return torch.optim.Adam([group], **options) if which == ADAM else LearnedOptimizer([group], which, **options)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)).to(dtype)


def loss_of(model, step):
    like = next(model.parameters())
    inputs = torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(step)).to(like)
    return (model(inputs) - inputs.sum(dim=2)).square().mean()


def train(model, optimizer, steps):
    """Weights after these steps."""
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    return weights(model)


def weights(model):
    return [param.detach().clone() for param in model.parameters()]


def same_bits(found, expected):
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def moved(found, before):
    return [not torch.equal(one, other) for one, other in zip(found, before, strict=True)]


def through_a_file(what):
    """By torch.save and by torch.load as it is by default, with weights_only."""
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class TestStates:
    @each
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_a_saved_state_continues_bit_for_bit(self, which, dtype):
        model = network(dtype)
        optimizer = optimizer_of(which, model, lr=0.5)
        there = copy.deepcopy((train(model, optimizer, range(3)), through_a_file(optimizer.state_dict())))
        expected = train(model, optimizer, range(3, 6))
        again = network(dtype)
        for param, values in zip(again.parameters(), there[0], strict=True):
            param.data.copy_(values)
        other = optimizer_of(which, again)
        other.load_state_dict(there[1])
        found = train(again, other, range(3, 6))
        assert all(moved(expected, there[0]))
        if which != ADAM or dtype in (torch.float32, torch.float64):  # Adam's state is of the parameter's type
            assert same_bits(found, expected)
        assert other.param_groups[0]["lr"] == 0.5

    @each
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_a_copy_in_the_middle_of_a_run_continues_bit_for_bit(self, which, duplicate):
        model = network()
        optimizer = optimizer_of(which, model)
        train(model, optimizer, range(3))
        twin, other = duplicate((model, optimizer))
        expected = train(model, optimizer, range(3, 6))
        assert same_bits(train(twin, other, range(3, 6)), expected)

    @each
    @pytest.mark.parametrize("when", ["new", "loaded", "unpickled"])
    def test_the_class_and_the_defaults_make_another_one(self, which, when):
        """As ZeroRedundancyOptimizer does, and Accelerate."""
        model, twin = network(), network()
        optimizer = optimizer_of(which, model)
        if when == "loaded":
            optimizer.load_state_dict(optimizer.state_dict())
        if when == "unpickled":
            model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
        groups = [
            {**({} if which == ADAM else {"kind": given["kind"]}), "params": given["params"]}
            for given in (parameter_groups(twin) if which != ADAM else [{"params": list(twin.parameters())}])
        ]
        other = type(optimizer)(groups, **optimizer.defaults)
        assert same_bits(train(twin, other, range(3)), train(model, optimizer, range(3)))

    @each
    def test_so_do_its_groups(self, which):
        model = network()
        optimizer = optimizer_of(which, model, lr=0.5)
        again = type(optimizer)(copy.copy(optimizer.param_groups), **optimizer.defaults)
        assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]

    @each
    def test_hooks_are_called_around_what_they_are_named_after(self, which):
        model, called = network(), []
        optimizer = optimizer_of(which, model)

        def hook(name, result=None):
            return lambda *arguments: called.append(name) or result

        optimizer.register_step_pre_hook(hook("before step"))
        optimizer.register_step_post_hook(hook("after step"))
        optimizer.register_state_dict_pre_hook(hook("before state"))
        optimizer.register_state_dict_post_hook(hook("after state"))
        optimizer.register_load_state_dict_pre_hook(hook("before load"))
        optimizer.register_load_state_dict_post_hook(hook("after load"))
        train(model, optimizer, range(1))
        optimizer.load_state_dict(optimizer.state_dict())
        assert called == [f"{when} {what}" for what in ("step", "state", "load") for when in ("before", "after")]

    @each
    def test_a_hook_may_change_what_is_loaded(self, which):
        model, sizes = network(torch.bfloat16), []
        optimizer = optimizer_of(which, model)
        train(model, optimizer, range(2))

        def halve(_, given):
            state = {index: {k: v / 2 for k, v in tensors.items()} for index, tensors in given["state"].items()}
            return {**given, "state": state}

        def look(optimizer):
            sizes.append([t for tensors in optimizer.state.values() for t in tensors.values()])

        optimizer.register_load_state_dict_pre_hook(halve)
        optimizer.register_load_state_dict_post_hook(look)
        before = [t.clone() for tensors in optimizer.state.values() for t in tensors.values()]
        optimizer.load_state_dict(optimizer.state_dict())
        assert same_bits(sizes[0], [tensor / 2 for tensor in before])

    @each
    def test_named_parameters(self, which):
        def make(model):
            named = [{"params": list(model.named_parameters()), "kind": "fc"}]
            return (
                torch.optim.Adam(model.named_parameters(), lr=1.0) if which == ADAM else LearnedOptimizer(named, which)
            )

        model, twin = network(), network()
        optimizer, other = make(model), make(twin)
        train(model, optimizer, range(2))
        twin.load_state_dict(model.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # Adam's would be shared
        assert same_bits(train(twin, other, range(2, 4)), train(model, optimizer, range(2, 4)))
        assert other.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


SCHEDULERS = {
    "LambdaLR": {"lr_lambda": lambda step: 1 / (1 + step)},
    "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 5]},
    "ConstantLR": {"total_iters": 4},
    "LinearLR": {"total_iters": 4},
    "ExponentialLR": {"gamma": 0.8},
    "SequentialLR": {"milestones": [3]},
    "CosineAnnealingLR": {"T_max": 10},
    "ChainedScheduler": {},
    "ReduceLROnPlateau": {"patience": 1},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3, "cycle_momentum": False},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "OneCycleLR": {"max_lr": 1.0, "total_steps": 20, "cycle_momentum": False},
    "PolynomialLR": {"total_iters": 8},
}


def scheduler_of(name, optimizer):
    def two():
        return [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.9)]

    if name == "SequentialLR":
        return lr_scheduler.SequentialLR(optimizer, two(), **SCHEDULERS[name])
    if name == "ChainedScheduler":
        return lr_scheduler.ChainedScheduler(two(), optimizer)
    return getattr(lr_scheduler, name)(optimizer, **SCHEDULERS[name])


class TestSchedulers:
    def test_all_of_torch_are_tried(self):
        assert set(SCHEDULERS) == set(lr_scheduler.__all__) - {"LRScheduler"}

    @each
    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_ten_steps_with_a_restart_between_them(self, which, name):
        """The learning rates are those of torch.optim.SGD, and the parameters move."""

        def rates(optimizer, model, restart):
            scheduler, found = scheduler_of(name, optimizer), []
            for step in range(10):
                if step == 5 and restart:
                    states = copy.deepcopy((scheduler.state_dict(), optimizer.state_dict()))
                    optimizer = optimizer_of(which, model, lr=1.0)
                    scheduler = scheduler_of(name, optimizer)
                    scheduler.load_state_dict(states[0])
                    optimizer.load_state_dict(states[1])
                train(model, optimizer, [step])
                scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
                found.append([group["lr"] for group in optimizer.param_groups])
            return found

        model = network()
        before = weights(model)
        found = rates(optimizer_of(which, model, lr=1.0), model, restart=True)
        expected = rates(torch.optim.SGD(network().parameters(), lr=1.0), network(), restart=False)
        assert found == [one * len(found[0]) for one in expected]
        assert all(moved(weights(model), before))

    @pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
    def test_what_has_no_momentum_says_so(self, name):
        """As torch's own optimizers do that have none."""
        for optimizer in (optimizer_of("mnist", network()), torch.optim.Adagrad(network().parameters())):
            with pytest.raises(ValueError, match="momentum"):
                getattr(lr_scheduler, name)(optimizer, **{**SCHEDULERS[name], "cycle_momentum": True})

    @each
    def test_a_learning_rate_may_be_a_tensor(self, which):
        model, twin = network(), network()
        found = train(model, optimizer_of(which, model, lr=torch.tensor(0.25)), range(3))
        for one, other in zip(found, train(twin, optimizer_of(which, twin, lr=0.25), range(3)), strict=True):
            torch.testing.assert_close(one, other)


class TestPrecision:
    @each
    def test_the_whole_loop_in_autocast(self, which):
        """The model computes in bfloat16; what the optimizer makes of the gradients does not."""
        model, twin = network(), network()
        optimizer, other = optimizer_of(which, model), optimizer_of(which, twin)
        for step in range(5):
            for each_model in (model, twin):
                each_model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss_of(model, step).backward()
                optimizer.step()
            with torch.autocast("cpu", torch.bfloat16):
                loss_of(twin, step).backward()
            other.step()
        assert same_bits(weights(model), weights(twin))

    @each
    def test_a_gradient_scaler(self, which):
        model, twin = network(), network()
        optimizer, scaler = optimizer_of(which, model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            scaler.step(optimizer)
            scaler.update()
        expected = train(twin, optimizer_of(which, twin), range(3))
        for one, other in zip(weights(model), expected, strict=True):
            torch.testing.assert_close(one, other)
        before = weights(model)
        scaler.scale(loss_of(model, 3) * torch.inf).backward()
        scaler.step(optimizer)
        assert same_bits(weights(model), before)

    @each
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_parameters(self, which, dtype):
        model = network(dtype)
        before = weights(model)
        found = train(model, optimizer_of(which, model), range(3))
        assert all(moved(found, before))
        assert all(tensor.dtype == dtype and tensor.isfinite().all() for tensor in found)

    @each_rule
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_rules_of_any_precision(self, which, dtype):
        """Their states are of it, and know their rule."""
        model, rule = network(), l2l.load(which).to(dtype)
        optimizer = LearnedOptimizer(parameter_groups(model), rule)
        before = weights(model)
        assert all(moved(train(model, optimizer, range(2)), before))
        assert {tensor.dtype for state in optimizer.state.values() for tensor in state.values()} == {dtype}
        other = LearnedOptimizer(parameter_groups(model), rule)
        other.load_state_dict(through_a_file(optimizer.state_dict()))
        assert {tensor.dtype for state in other.state.values() for tensor in state.values()} == {dtype}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "double precision by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "meta device by default": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
}


class TestSurroundings:
    """What is set around an optimizer does not change what it does."""

    @each
    @pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS)
    def test_nothing_changes_with_them(self, which, around):
        model, twin = network(), network()
        expected_optimizer = optimizer_of(which, twin)
        expected = train(twin, expected_optimizer, range(2))
        saved = copy.deepcopy(expected_optimizer.state_dict())
        if which == ADAM and around is SURROUNDINGS["meta device by default"]:
            pytest.skip("Adam's count of steps would be there")
        with around():
            optimizer = optimizer_of(which, model)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            with around():
                optimizer.step()
        assert same_bits(weights(model), expected)
        with around():
            other = optimizer_of(which, model)
            other.load_state_dict(saved)
        assert same_bits(train(model, other, range(2, 4)), train(twin, expected_optimizer, range(2, 4)))

    @each_rule
    @pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS)
    def test_a_rule_is_loaded_as_it_was_saved(self, which, around, tmp_path):
        expected = l2l.load(which).state_dict()
        with around():
            found = l2l.load(which).state_dict()
            double = l2l.load(l2l.save(l2l.load(which).double(), tmp_path / "double")).state_dict()
        for name, tensor in expected.items():
            assert (found[name].device.type, found[name].dtype) == ("cpu", tensor.dtype)
            assert torch.equal(found[name], tensor)
            assert torch.equal(double[name], tensor.double())


def seen_and_unseen(which, dtype=torch.float32):
    """A parameter of which every other coordinate has gradients, and its values after some steps."""
    param = nn.Parameter(torch.linspace(-1, 1, 6, dtype=dtype))
    optimizer = of_tensors(which, param)
    before = param.detach().clone()
    for step in range(5):
        param.grad = torch.tensor([1.0, 0.0, -0.1, 0.0, 1e-6, 0.0], dtype=dtype) * (-1) ** step
        optimizer.step()
    return param, optimizer, before


class TestGradients:
    @each
    def test_what_never_had_one_stays(self, which):
        param, optimizer, before = seen_and_unseen(which)
        assert moved(param.detach(), before) == [True, False] * 3
        for values in optimizer.state[param].values():
            if values.dim():
                assert not values[..., 1::2].any()

    @each
    def test_what_had_one_moves_on(self, which):
        param, optimizer, _ = seen_and_unseen(which)
        before, param.grad = param.detach().clone(), torch.zeros(6)
        optimizer.step()
        assert moved(param.detach(), before) == [True, False] * 3

    @each_alone
    def test_what_has_its_first_one_begins_then(self, which):
        """As it would have at the first step."""
        if which == ADAM:
            pytest.skip("Adam counts its steps for the whole parameter")
        late, first = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
        one, other = of_tensors(which, late), of_tensors(which, first)
        for _ in range(3):
            late.grad = torch.zeros(3)
            one.step()
        for gradient in ([1.0, 0.5, -2.0], [0.1, 0.0, 3.0]):
            late.grad, first.grad = torch.tensor(gradient), torch.tensor(gradient)
            one.step()
            other.step()
        assert torch.equal(late, first)

    @each
    def test_the_row_of_a_padding_token_stays(self, which):
        table = nn.Embedding(5, 3, padding_idx=0)
        optimizer, before = optimizer_of(which, table), table.weight.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            table(torch.tensor([[0, 2, 3]])).square().sum().backward()
            optimizer.step()
        assert moved(table.weight, before) == [False, False, True, True, False]

    @each
    def test_sparse_ones_are_refused(self, which):
        table = nn.Embedding(5, 3, sparse=True)
        before = table.weight.detach().clone()
        table(torch.tensor([1, 2])).sum().backward()
        with pytest.raises(RuntimeError, match="sparse gradients"):
            optimizer_of(which, table).step()
        assert torch.equal(table.weight, before)


LAYOUTS = {
    "of no dimension": lambda: torch.tensor(0.5),
    "of no size": lambda: torch.zeros(0, 3),
    "transposed": lambda: torch.linspace(-1, 1, 6).view(2, 3).T,
    "strided": lambda: torch.linspace(-1, 1, 12).view(6, 2)[:, 0],
    "channels last": lambda: torch.linspace(-1, 1, 24).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "complex": lambda: torch.complex(torch.linspace(-1, 1, 4), torch.linspace(2, 3, 4)),
}


class TestParameters:
    @each
    @pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
    @pytest.mark.parametrize("gradient_too", [False, True])
    def test_of_any_layout(self, which, make, gradient_too):
        """They move as the same numbers do in a plain vector, and so they do after a restart."""
        param = nn.Parameter(make())
        flat = torch.view_as_real(make()) if param.is_complex() else make()
        plain = nn.Parameter(flat.flatten().clone())
        optimizer, other = of_tensors(which, param), of_tensors(which, plain)
        for step in range(4):
            gradient = torch.randn(plain.shape, generator=torch.Generator().manual_seed(step))
            plain.grad = gradient
            shaped = gradient.view(flat.shape)
            shaped = torch.view_as_complex(shaped) if param.is_complex() else shaped
            param.grad = torch.empty_like(param).copy_(shaped) if gradient_too else shaped.contiguous()
            if step == 2:
                saved = through_a_file(optimizer.state_dict())
                optimizer = of_tensors(which, param)
                optimizer.load_state_dict(saved)
            optimizer.step()
            other.step()
        found = (torch.view_as_real(param.detach()) if param.is_complex() else param.detach()).flatten()
        torch.testing.assert_close(found, plain.detach(), rtol=1e-5, atol=1e-6)
        assert param.stride() == make().stride()

    @each
    def test_that_can_have_no_gradient_are_left_alone(self, which):
        if which in TOGETHER:
            pytest.skip("its parameters must all have gradients, see below")
        count, param = nn.Parameter(torch.arange(3), requires_grad=False), nn.Parameter(torch.ones(3))
        optimizer = of_tensors(which, count, param)
        param.grad = torch.ones(3)
        optimizer.step()
        assert moved([count, param], [torch.arange(3), torch.ones(3)]) == [False, True]

    @each
    def test_that_are_added_late(self, which):
        model = network()
        first, *rest = parameter_groups(model)
        groups = [first, *rest] if which != ADAM else [{"params": group["params"]} for group in (first, *rest)]
        optimizer = type(optimizer_of(which, model))(groups[:1], **optimizer_of(which, model).defaults)
        train(model, optimizer, range(2))
        optimizer.add_param_group(groups[1])
        before = weights(model)
        assert all(moved(train(model, optimizer, range(2, 4)), before))

    @each_alone
    def test_that_are_frozen_late(self, which):
        model = network()
        optimizer = optimizer_of(which, model)
        before = train(model, optimizer, range(2))
        model[0].requires_grad_(False)
        assert moved(train(model, optimizer, range(2, 4)), before) == [False, False, True, True]

    @pytest.mark.parametrize("which", TOGETHER)
    def test_of_a_rule_that_moves_all_together_cannot_be_frozen(self, which):
        model = network()
        optimizer = optimizer_of(which, model)
        train(model, optimizer, range(2))
        model[0].requires_grad_(False)
        with pytest.raises(RuntimeError, match=r"2 of 4 parameters have no gradient; leave those .* out"):
            train(model, optimizer, range(2, 3))


class TestGroups:
    LABELS = ("name", "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "lr_scale")

    @each
    def test_labels_of_others_pass(self, which):
        param = nn.Parameter(torch.zeros(3))
        group = {"params": [param], **dict.fromkeys(self.LABELS, 0.5)}
        group |= {} if which == ADAM else {"kind": "fc"}
        optimizer = torch.optim.Adam([group]) if which == ADAM else LearnedOptimizer([group], which)
        assert all(optimizer.param_groups[0][label] == 0.5 for label in self.LABELS)

    @each_rule
    def test_options_without_effect_are_refused(self, which):
        """Adam takes them, and they have none."""
        for option in ("momentum", "betas", "weigth_decay"):
            group = {"params": [nn.Parameter(torch.zeros(3))], option: 0.9}
            assert torch.optim.Adam([dict(group)]).param_groups[0][option] == 0.9
            with pytest.raises(ValueError, match=f"'{option}' .*would have no effect"):
                LearnedOptimizer([{**group, "kind": "fc"}], which)

    @each
    def test_weight_decay_is_decoupled(self, which):
        """θ ← θ − lr · weight_decay · θ, whatever the gradient; where it is zero that is all that happens."""
        values = torch.tensor([1.0, -2.0, 0.5])
        params = [nn.Parameter(values.clone()) for _ in range(2)]
        groups = [{"params": params[:1], "weight_decay": 0.3}, {"params": params[1:]}]
        if which == ADAM:
            optimizer = torch.optim.AdamW(groups, lr=0.5, weight_decay=0.0)
        else:
            optimizer = LearnedOptimizer([{**group, "kind": "fc"} for group in groups], which, lr=0.5)
        for param in params:
            param.grad = torch.zeros(3)
        optimizer.step()
        torch.testing.assert_close(params[0].detach(), values * (1 - 0.5 * 0.3))
        assert torch.equal(params[1].detach(), values)

    @each
    def test_numbers_below_zero_are_refused(self, which):
        for option in ("lr", "weight_decay"):
            with pytest.raises(ValueError, match=r"lr|learning rate|weight_decay"):
                optimizer_of(which, network(), **{option: -0.1})


class TestCompiled:
    @each
    def test_a_model(self, which):
        model, twin = network(), network()
        optimizer = optimizer_of(which, model)
        compiled = torch.compile(model, backend="eager")
        train(compiled, optimizer, range(3))
        for one, other in zip(weights(model), train(twin, optimizer_of(which, twin), range(3)), strict=True):
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("which", [ADAM, l2l.LSTMRule(hidden_size=2, num_layers=1)], ids=["Adam", "a small rule"])
    def test_a_step(self, which):
        """Its compiling takes many times as long as the step itself."""
        torch._dynamo.reset()
        params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
        one, other = (of_tensors(which, param) for param in params)
        steps = [one.step, torch.compile(other.step, backend="eager")]
        for gradient in ([1.0, 0.0, -1.0], [0.5, 0.0, 2.0]):
            for param, step in zip(params, steps, strict=True):
                param.grad = torch.tensor(gradient)
                step()
        torch.testing.assert_close(params[0], params[1])
        assert not torch.equal(params[0], torch.ones(3))


def peak_memory(run):
    """Bytes that it allocates at most at a time, as torch counts them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(held, initial=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16], ids=str)
def test_memory_is_what_the_docstring_says(monkeypatch, dtype, state_dtype):
    """320 bytes a coordinate for the state, or half, once; 10 more in a step, and what a chunk of coordinates takes."""
    size, chunk = 2**16, 2**11
    monkeypatch.setattr(learned_optimizer, "CHUNK", chunk)
    param = nn.Parameter(torch.zeros(size, dtype=dtype))
    param.grad = torch.ones_like(param)
    optimizer = LearnedOptimizer([param], "mnist", state_dtype=state_dtype)
    state = size * (320 if state_dtype is None else 160)
    for expected in (state, 0, 0):
        assert expected <= peak_memory(optimizer.step) < expected + 10.5 * size + 2000 * chunk
    assert sum(values.nbytes for values in optimizer.state[param].values()) == state
