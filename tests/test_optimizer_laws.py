"""Laws of torch.optim: each is tried on torch.optim.Adam, as the control, and on every kind of rule that is shipped."""

import copy
import functools
import itertools
import pickle
from contextlib import contextmanager

import pytest
import torch
from small import ADAM, Run, assert_close, of_groups, of_model, same_bits, through_a_file
from torch import nn
from torch.optim import lr_scheduler

import l2l_kit as l2l
from l2l_kit import LearnedOptimizer, learned_optimizer

HALF = (torch.bfloat16, torch.float16)


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
COUPLED = [name for name in RULES if not l2l.load(name).coordinatewise]
each = pytest.mark.parametrize("which", [ADAM, *RULES])
each_rule = pytest.mark.parametrize("which", RULES)


def of_tensors(which, *params):
    return of_groups(which, [{"params": params}])


def moved(found, before):
    return [not torch.equal(one, other) for one, other in zip(found, before, strict=True)]


class TestStates:
    @each
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
    def test_a_saved_state_continues_bit_for_bit(self, which, dtype):
        """For parameters of any precision; the state of a rule is of its own."""
        run = Run(which, dtype, lr=0.5)
        before, other = run.train(0, 1, 2), run.again().load(run)
        expected, found = run.train(3, 4, 5), other.train(3, 4, 5)
        assert all(moved(expected, before))
        assert all(tensor.dtype == dtype and tensor.isfinite().all() for tensor in found)
        assert set(other.rates) == {0.5}
        if which != ADAM:
            assert {tensor.dtype for tensor in run.kept} == {torch.float32}
        if which != ADAM or dtype not in HALF:  # Adam's state is of the parameter's type
            assert same_bits(found, expected)

    @each
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
    def test_a_copy_in_the_middle_of_a_run_continues_bit_for_bit(self, which, duplicate):
        run, twin = Run(which), Run(which)
        run.train(0, 1, 2)
        twin.model, twin.optimizer = duplicate((run.model, run.optimizer))
        assert same_bits(twin.train(3, 4), run.train(3, 4))

    @each
    @pytest.mark.parametrize("when", ["new", "loaded", "unpickled"])
    def test_the_class_and_the_defaults_make_another_one_and_so_do_the_groups(self, which, when):
        """As ZeroRedundancyOptimizer does, and Accelerate."""
        run, twin = Run(which), Run(which)
        if when == "loaded":
            run.optimizer.load_state_dict(run.optimizer.state_dict())
        if when == "unpickled":
            run.model, run.optimizer = pickle.loads(pickle.dumps((run.model, run.optimizer)))
        make = functools.partial(type(run.optimizer), **run.optimizer.defaults)
        bare = [
            {name: group[name] for name in group if name in ("params", "kind")} for group in twin.optimizer.param_groups
        ]
        twin.optimizer = make(bare)
        assert same_bits(twin.train(0, 1, 2), run.train(0, 1, 2))
        run.optimizer.param_groups[0]["lr"] = 0.5
        assert [group["lr"] for group in make(copy.copy(run.optimizer.param_groups)).param_groups] == run.rates

    @each
    def test_hooks_are_called_around_what_they_are_named_after_and_may_change_what_is_loaded(self, which):
        run, called, loaded = Run(which, torch.bfloat16), [], []
        names = [f"{what}_{when}" for what in ("step", "state_dict", "load_state_dict") for when in ("pre", "post")]
        for name in names:
            getattr(run.optimizer, f"register_{name}_hook")(lambda *_, name=name: called.append(name))
        run.train(0)
        before = run.kept

        def halve(_, given):
            state = {index: {k: v / 2 for k, v in tensors.items()} for index, tensors in given["state"].items()}
            return {**given, "state": state}

        run.optimizer.register_load_state_dict_pre_hook(halve)
        run.optimizer.register_load_state_dict_post_hook(lambda _: loaded.extend(run.kept))
        run.optimizer.load_state_dict(run.optimizer.state_dict())
        assert called == names
        assert same_bits(loaded, [tensor / 2 for tensor in before])

    @each
    def test_named_parameters(self, which):
        run = Run(which, make=lambda which, model: of_groups(which, [{"params": list(model.named_parameters())}]))
        run.train(0, 1)
        other = run.again().load(run)
        assert same_bits(other.train(2, 3), run.train(2, 3))
        assert other.optimizer.param_groups[0]["param_names"] == [name for name, _ in run.model.named_parameters()]


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


def scheduler_of(name, optimizer, **more):
    make, arguments = functools.partial(getattr(lr_scheduler, name), optimizer=optimizer), {**SCHEDULERS[name], **more}
    if name in ("SequentialLR", "ChainedScheduler"):
        arguments["schedulers"] = [lr_scheduler.ExponentialLR(optimizer, gamma) for gamma in (0.5, 0.9)]
    return make(**arguments)


class TestSchedulers:
    def test_all_of_torch_are_tried(self):
        assert set(SCHEDULERS) == set(lr_scheduler.__all__) - {"LRScheduler"}

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_ten_steps_with_a_restart_between_them(self, name):
        """The learning rates are those of torch.optim.SGD, and the parameters move."""
        run, sgd = Run("mnist", lr=1.0), Run("mnist", make=lambda _, model: torch.optim.SGD(model.parameters(), lr=1.0))
        before, scheduler, expected = run.weights, *(scheduler_of(name, one.optimizer) for one in (run, sgd))
        for step in range(10):
            if step == 5:
                again, state = run.again(), copy.deepcopy(scheduler.state_dict())
                scheduler = scheduler_of(name, again.optimizer)
                scheduler.load_state_dict(state)
                run = again.load(run)
            for one, each_scheduler in ((run, scheduler), (sgd, expected)):
                one.train(step)
                each_scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            assert set(run.rates) == set(sgd.rates)
        assert all(moved(run.weights, before))

    @pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
    @pytest.mark.parametrize("make", [of_model, lambda _, model: torch.optim.Adagrad(model.parameters())])
    def test_what_has_no_momentum_says_so(self, name, make):
        """As torch's own optimizers do that have none."""
        with pytest.raises(ValueError, match="momentum"):
            scheduler_of(name, Run("mnist", make=make).optimizer, cycle_momentum=True)

    @each
    def test_a_learning_rate_may_be_a_tensor(self, which):
        assert_close(Run(which, lr=torch.tensor(0.25)).train(0, 1, 2), Run(which, lr=0.25).train(0, 1, 2))


class TestPrecision:
    @each
    def test_the_whole_loop_in_autocast(self, which):
        """The model computes in bfloat16; what the optimizer makes of the gradients does not."""
        inside, outside = Run(which), Run(which)
        for step in range(5):
            for run in (inside, outside):
                run.model.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    run.loss(step).backward()
                with torch.autocast("cpu", torch.bfloat16, enabled=run is inside):
                    run.optimizer.step()
        assert same_bits(inside.weights, outside.weights)

    @each
    def test_a_gradient_scaler(self, which):
        run, scaler = Run(which), torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(3):
            run.optimizer.zero_grad()
            scaler.scale(run.loss(step)).backward()
            scaler.step(run.optimizer)
            scaler.update()
        assert_close(run.weights, Run(which).train(0, 1, 2))
        before = run.weights
        scaler.scale(run.loss(3) * torch.inf).backward()
        scaler.step(run.optimizer)
        assert same_bits(run.weights, before)

    @each_rule
    @pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
    def test_rules_of_any_precision(self, which, dtype):
        """Their states are of it, and know their rule."""
        run = Run(l2l.load(which).to(dtype))
        before = run.weights
        assert all(moved(run.train(0, 1), before))
        assert {tensor.dtype for one in (run, run.again().load(run)) for tensor in one.kept} == {dtype}


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


@each
@pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_nothing_changes_with_what_is_set_around_it(which, around):
    """Where a rule is loaded, where it makes a step, and where it loads a state."""
    if which == ADAM and around is SURROUNDINGS["meta device by default"]:
        pytest.skip("Adam's count of steps would be there")
    run, twin, expected = Run(which), Run(which), Run(which)
    with around():
        run.optimizer, twin.optimizer = (of_model(which, one.model) for one in (run, twin))
    for step in range(2):
        run.optimizer.zero_grad()
        run.loss(step).backward()
        with around():
            run.optimizer.step()
    assert same_bits(run.weights, expected.train(0, 1))
    with around():
        twin.load(expected)
    assert same_bits(twin.train(2, 3), expected.train(2, 3))


class TestGradients:
    @each
    def test_what_never_had_one_stays_and_what_had_one_moves_on(self, which):
        """Every other coordinate has gradients, and then none has."""
        param = nn.Parameter(torch.linspace(-1, 1, 6))
        optimizer = of_tensors(which, param)
        for after in ([*range(5)], [5]):
            before = param.detach().clone()
            for step in after:
                gradient = torch.tensor([1.0, 0.0, -0.1, 0.0, 1e-6, 0.0]) * (-1) ** step
                param.grad = gradient if step < 5 else torch.zeros(6)
                optimizer.step()
            assert moved(param.detach(), before) == [True, False] * 3
        assert not any(values[..., 1::2].any() for values in optimizer.state[param].values() if values.dim())

    @pytest.mark.parametrize("which", [name for name in RULES if name not in COUPLED])
    def test_what_has_its_first_one_begins_then(self, which):
        """As it would have at the first step."""
        late, first = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
        one, other = of_tensors(which, late), of_tensors(which, first)
        for gradient in ([0.0] * 3, [0.0] * 3, [1.0, 0.5, -2.0], [0.1, 0.0, 3.0]):
            late.grad, first.grad = torch.tensor(gradient), torch.tensor(gradient)
            one.step()
            if any(gradient):
                other.step()
        assert torch.equal(late, first)

    @each
    def test_sparse_ones_are_refused(self, which):
        table = nn.Embedding(5, 3, sparse=True)
        before = table.weight.detach().clone()
        table(torch.tensor([1, 2])).sum().backward()
        with pytest.raises(RuntimeError, match="sparse gradients"):
            of_model(which, table).step()
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
            plain.grad = torch.randn(plain.shape, generator=torch.Generator().manual_seed(step))
            shaped = plain.grad.view(flat.shape)
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
    def test_that_are_added_late(self, which):
        """They begin afresh, and the states of both go on."""

        def early(which, model):
            return of_groups(which, [{"params": model[0].parameters()}])

        def add(run):
            kind = {} if which == ADAM else {"kind": "fc"}
            run.optimizer.add_param_group({"params": run.model[3].parameters(), "lr": 0.5, **kind})

        run, twin = Run(which, make=early), Run(which, make=early)
        run.train(0, 1)
        add(run)
        add(twin)
        before = run.weights
        assert all(moved(run.train(2, 3), before))
        assert same_bits(twin.load(run).train(4, 5), run.train(4, 5))
        assert run.rates == twin.rates == [run.optimizer.defaults["lr"], 0.5]

    @each
    def test_that_are_frozen_late(self, which):
        """They stay; where a rule moves all together they cannot be."""
        run = Run(which)
        run.optimizer.step()  # none has a gradient yet
        assert not run.optimizer.state
        before = run.train(0, 1)
        run.model[0].requires_grad_(False)
        if which in COUPLED:
            with pytest.raises(RuntimeError, match=r"2 of 4 parameters have no gradient; leave those .* out"):
                run.train(2)
        else:
            assert moved(run.train(2, 3), before) == [False, False, True, True]


class TestGroups:
    LABELS = ("name", "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "lr_scale")

    @each_rule
    def test_labels_of_others_pass_and_options_without_effect_are_refused(self, which):
        """Adam takes these, and they have none."""
        group = {"params": [nn.Parameter(torch.zeros(3))]}
        (kept,) = of_groups(which, [{**group, **dict.fromkeys(self.LABELS, 0.5)}]).param_groups
        assert all(kept[label] == 0.5 for label in self.LABELS)
        for option in ("momentum", "betas", "weigth_decay"):
            assert of_groups(ADAM, [{**group, option: 0.9}]).param_groups[0][option] == 0.9
            with pytest.raises(ValueError, match=f"'{option}' .*would have no effect"):
                of_groups(which, [{**group, option: 0.9}])

    @each
    def test_weight_decay_is_decoupled(self, which):
        """θ ← θ − lr · weight_decay · θ, whatever the gradient; where it is zero that is all that happens."""
        values = torch.tensor([1.0, -2.0, 0.5])
        params = [nn.Parameter(values.clone()) for _ in range(2)]
        groups = [{"params": params[:1], "weight_decay": 0.3}, {"params": params[1:], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.5) if which == ADAM else of_groups(which, groups, lr=0.5)
        for param in params:
            param.grad = torch.zeros(3)
        optimizer.step()
        torch.testing.assert_close(params[0].detach(), values * (1 - 0.5 * 0.3))
        assert torch.equal(params[1].detach(), values)
        for option in ("lr", "weight_decay"):
            with pytest.raises(ValueError, match=r"lr|learning rate|weight_decay"):
                Run(which, **{option: -0.1})


class TestCompiled:
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
