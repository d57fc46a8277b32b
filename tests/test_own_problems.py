"""Problems of one's own: two ways to make one in ten lines, and mistakes that are named where they are made."""

import copy
import itertools
import json
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from small import rosenbrock, valley
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from l2l_kit import LearnedOptimizer, cli, parameter_groups, problems, widgets, zoo
from l2l_kit.evaluation import compare, lbfgs, read_result, tune
from l2l_kit.optimizers import NTMBFGS, GroupedRule, LSTMRule, baseline
from l2l_kit.problems import ModuleProblem, Problem, Quadratics, QuadraticTasks, TaskBatch
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, ravel
from l2l_kit.training import (
    AutogradEstimator,
    FirstOrderEstimator,
    MetaTrainer,
    MetaTraining,
    SecondOrderEstimator,
    meta_train,
    rollout,
    trajectory,
)

N = 4
GIVEN = ("horizon", "unroll", "epochs", "episodes_per_epoch", "batch_size", "validation_tasks")
SETTINGS = MetaTraining(horizon=4, unroll=2, epochs=1, episodes_per_epoch=2, batch_size=N, validation_tasks=N)

OWN = {
    "own_functions": """import torch
from l2l_kit.problems import Problem, register
def init(generator):
    W, y, theta = (torch.randn(shape, generator=generator) for shape in ((3, 3), (3,), (3,)))
    return {"theta": theta}, {"W": W, "y": y}
def loss(params, data):
    return (data["W"] @ params["theta"] - data["y"]).square().sum()
problem = register(Problem.from_functions("own_functions", init, loss))
""",
    "own_module": """import torch
from torch import nn
from l2l_kit.problems import ModuleProblem, register
def make_model():
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
def batches(generator):
    x = torch.rand(8, 1, generator=generator)
    return x, x.sin()
problem = register(ModuleProblem("own_module", make_model, batches, nn.functional.mse_loss))
""",
}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What recipes and the command line call the problems in these files."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in OWN.items():
        assert len(text.splitlines()) <= 10
        (folder / f"{name}.py").write_text(text)
    return {name: f"{folder / name}.py:{name}" for name in OWN}


@pytest.fixture(params=OWN)
def own(names, request):
    return problems.make({"name": names[request.param]})


class TestInTenLines:
    def test_is_meta_trained_saved_loaded_and_compared(self, own, tmp_path):
        rule = LSTMRule(3, output_scale=0.1)
        history = meta_train(
            rule, own, replace(SETTINGS, epochs=2), checkpoint=tmp_path / "run", device="cpu", progress=False
        )
        path = zoo.save(rule, tmp_path / "mine", history)
        assert zoo.card(path)["problem"] == {"name": own.name}
        assert problems.make(zoo.card(path)["problem"]) is own
        optimizers = {"mine": zoo.load(path), "as it was": rule, "Adam": baseline("adam", 0.1)}
        curves = compare(optimizers, own, steps=3, num_tasks=5, device="cpu")
        assert torch.equal(curves["mine"], curves["as it was"])
        assert torch.equal(curves["mine"][:, 0], curves["Adam"][:, 0])
        resumed = MetaTrainer(rule, own, history.settings, checkpoint=tmp_path / "run", device="cpu")
        assert resumed.history.best.validation_loss == history.best.validation_loss
        assert pickle.loads(pickle.dumps(own)) == own, "another process imports the file"

    def test_in_the_trainer(self, own):
        trainer = widgets.Trainer(own, SETTINGS, baselines={"SGD": baseline("sgd", 0.1)})
        trainer.run()
        assert trainer.trained is not None
        trainer.close()


@pytest.mark.parametrize(
    "wrong", [None, {"x": 1, "y": 2}, torch.ones(2, 1), (torch.ones(2, 1),), (torch.ones(2, 1), 3)], ids=repr
)
def test_batches_that_are_no_inputs_and_targets_are_refused(wrong):
    problem = ModuleProblem("mine", lambda: nn.Linear(1, 1), lambda _: wrong, nn.functional.mse_loss)
    with pytest.raises(TypeError, match="mine: batches must give two tensors, inputs and targets, got"):
        next(trajectory(baseline("sgd", 0.1), problem.sample(2, generator(0))))


def test_recipes_sweeps_and_the_command_line_find_them_in_their_files(names, tmp_path):
    def l2l(*arguments):
        result = CliRunner().invoke(cli.app, [*map(str, arguments), "--device", "cpu"], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    training = "\n".join(f"{name} = {getattr(SETTINGS, name)}" for name in GIVEN)
    recipe = f"""
        problem.name = "{names["own_module"]}"
        optimizer.hidden_size = 3
        [training]
        {training}
    """
    sweep = f"""
        steps = [2]
        num_tasks = 2
        tuning_tasks = 2
        problem = {{}}
        learned.LSTM = "{tmp_path}/pretrained/mine.safetensors"
        grid.name = {json.dumps([*names.values()])}
        baselines.SGD = {{ name = "sgd", learning_rates = [0.003, 0.01] }}
    """
    (tmp_path / "mine.toml").write_text(recipe)
    (tmp_path / "both.toml").write_text(sweep)
    l2l("train", tmp_path / "mine.toml", "--data", tmp_path)
    l2l("sweep", tmp_path / "both.toml", "--data", tmp_path)
    assert set(read_result("sweeps/both", tmp_path / "results")["name"]) == set(names.values())
    l2l("compare", tmp_path / "pretrained/mine", "adam=0.1", "--problem", names["own_functions"], "--tasks", 2)
    l2l("tune", names["own_functions"], "--data", tmp_path, "--rates", 1, "--tasks", 2, "--steps", 2)
    assert (tmp_path / "results/own_functions/tuning.csv").is_file()


def test_functions_of_one_task_give_the_losses_of_a_batch(names):
    tasks = problems.make({"name": names["own_functions"]}).sample(N, generator(0))
    theta, layout = tasks.initial_params["theta"], Layout.of(tasks.initial_params)
    assert len(theta.unique()) == theta.numel()
    batch = QuadraticTasks(**tasks.data, theta=theta)
    for mine, theirs in zip(*(each.losses_and_gradients(theta, layout, 3) for each in (tasks, batch)), strict=True):
        torch.testing.assert_close(mine, theirs)


class Convolutional(nn.Module):
    """With batch normalisation, a bias that is frozen, and a matrix that is used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2))
        self.fc, self.again = nn.Linear(18, 18), nn.Linear(18, 18)
        self.again.weight = self.fc.weight
        self.conv[0].bias.requires_grad_(False)

    def forward(self, images):
        return self.again(self.fc(self.conv(images).flatten(1)).relu())


def squares(draws):
    return torch.randn(6, 1, 3, 3, generator=draws), torch.randint(18, (6,), generator=draws)


class TestModules:
    def test_losses_and_gradients_are_those_of_each_module_by_itself(self):
        tasks = ModuleProblem("squares", Convolutional, squares, functional.cross_entropy).sample(3, generator(0))
        start = tasks.initial_params
        names = ["conv.0.weight", "conv.1.weight", "conv.1.bias", "fc.weight", "fc.bias", "again.bias"]
        assert list(start) == [("conv." if name == "conv.0.weight" else "fc.") + name for name in names]
        assert all(not torch.equal(one, other) for one, other in itertools.pairwise(start["fc.fc.weight"]))
        layout = Layout.of(start)
        rows = ravel(start)
        losses, gradients = tasks.losses_and_gradients(rows + 0.01, layout, 7)
        for one, seed in enumerate(tasks.seeds):
            torch.manual_seed(seed)
            model = Convolutional()
            named = dict(model.named_parameters())
            for kind_and_name, tensor in start.items():
                name = kind_and_name.partition(".")[2]
                assert torch.equal(named[name], tensor[one])
                named[name].data += 0.01
            inputs, targets = squares(generator(seed, "minibatch", 7))
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            torch.testing.assert_close(losses[one], loss.detach())
            for name, gradient in layout.unravel(gradients).items():
                mine = named[name.partition(".")[2]].grad
                torch.testing.assert_close(gradient[one], mine, rtol=1e-4, atol=1e-6)

    def test_a_parametrized_module_is_as_good_as_another(self):
        """Each is of a class of its own."""

        def lines(draws):
            return torch.randn(6, 3, generator=draws), torch.randint(2, (6,), generator=draws)

        problem = ModuleProblem(
            "normed", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), lines, functional.cross_entropy
        )
        losses = rollout(baseline("sgd", 0.1), problem.sample(2, generator(0)), 20)
        assert (losses[:, -1] < losses[:, 0]).all()

    @pytest.mark.parametrize("which", [GroupedRule({"conv": {"hidden_size": 2}, "fc": {"hidden_size": 3}}), "cifar"])
    def test_a_rule_for_each_kind_moves_them_as_learned_optimizer_does(self, which):
        rule = zoo.load(which) if isinstance(which, str) else which
        tasks = ModuleProblem("squares", Convolutional, squares, functional.cross_entropy).sample(1, generator(0))
        torch.manual_seed(*tasks.seeds)
        model = Convolutional()
        optimizer = LearnedOptimizer(parameter_groups(model), which)
        for step in range(3):
            inputs, targets = squares(generator(*tasks.seeds, "minibatch", step))
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        *_, last = trajectory(rule, tasks, 3)
        trained = [param.flatten() for param in model.parameters() if param.requires_grad]
        torch.testing.assert_close(last.params[0], torch.cat(trained), rtol=1e-3, atol=1e-5)

    def test_a_model_that_was_there_before_stays_as_it_is(self):
        mine = Convolutional()
        before = copy.deepcopy(mine.state_dict())
        rollout(
            baseline("sgd", 0.1),
            ModuleProblem("mine", lambda: mine, squares, functional.cross_entropy).sample(2, generator(0)),
            2,
        )
        assert mine.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())

    @pytest.mark.parametrize("dropout", [0.0, 0.1])
    def test_dropout_is_refused(self, dropout):
        def make():
            return nn.Sequential(nn.Flatten(), nn.Linear(9, 18), nn.Dropout(dropout))

        tasks = ModuleProblem("random", make, squares, functional.cross_entropy).sample(2, generator(0))
        message = "random: its loss draws at random, as dropout does"
        with pytest.raises(ValueError, match=message) if dropout else nullcontext():
            rollout(baseline("sgd", 0.1), tasks, 1)


class Bowls(TaskBatch):
    """‖θ − y‖², with parameters of two shapes; `losses` counts its evaluations."""

    def __init__(self, n=N, dtype=torch.float32, seed=0):
        draws = torch.Generator().manual_seed(seed)
        self.target = torch.randn(n, 3, generator=draws).to(dtype)
        self._start = {"fc.vector": torch.randn(n, 2, generator=draws).to(dtype), "fc.number": torch.ones(n).to(dtype)}
        self.evaluations = 0

    @property
    def initial_params(self):
        return self._start

    def losses(self, params, step):
        self.evaluations += 1
        point = torch.cat([params["fc.vector"], params["fc.number"][:, None]], dim=1)
        return (point - self.target).square().sum(dim=1)


@dataclass(frozen=True)
class Own(Problem):
    """Samples what a function makes of the number of tasks."""

    name: ClassVar[str] = "own"
    make: ClassVar[Callable] = Bowls

    def sample(self, num_tasks, generator, device=None):
        return type(self).make(num_tasks)


def problem_of(make):
    return type("Own", (Own,), {"make": staticmethod(make)})()


# Every way into the kit.
SGD = {"SGD": baseline("sgd", 0.1)}
USES = {
    "train": lambda problem: meta_train(LSTMRule(3), problem, SETTINGS, device="cpu", progress=False),
    "compare": lambda problem: compare(SGD, problem, steps=2, num_tasks=N, device="cpu"),
    "tune": lambda problem: tune("sgd", problem, steps=2, num_tasks=N, learning_rates=[0.1], device="cpu"),
    "rollout": lambda problem: rollout(LSTMRule(3), problem.sample(N, generator(0)), 2),
    "unroll": lambda problem: FirstOrderEstimator(LSTMRule(3)).reset(problem.sample(N, generator(0))),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_takes_what_is_right_and_refuses_what_is_wrong(use):
    USES[use](problem_of(Bowls))
    with pytest.raises(ValueError, match=r"Changed\.losses: expected a tensor of shape"):
        USES[use](problem_of(with_losses(lambda losses, _: losses.mean())))
    for wrong in (Quadratics, "quadratics", Bowls(), None) if use not in ("rollout", "unroll") else ():
        with pytest.raises(TypeError, match="expected a problem"):
            USES[use](wrong)


def test_the_check_adds_no_evaluation():
    rollout(baseline("sgd", 0.1), tasks := Bowls(), 5)
    assert tasks.evaluations == 6
    list(lbfgs(one := Bowls(1), 0))
    assert one.evaluations == 2  # the second one without a gradient, to see whether the loss depends on the step
    estimator = FirstOrderEstimator(LSTMRule(3))
    estimator.reset(another := Bowls())
    estimator.unroll(3)
    assert another.evaluations == 4


def with_losses(change):
    """`Bowls` whose losses are changed."""

    class Changed(Bowls):
        def losses(self, params, step):
            return change(super().losses(params, step), params["fc.vector"])

    return Changed


def with_start(change):
    """`Bowls` whose starting points are changed, by what is put in place of the numbers or of all of them."""

    class Changed(Bowls):
        @property
        def initial_params(self):
            new = change(self._start["fc.vector"], self._start["fc.number"])
            return {**self._start, "fc.number": new} if isinstance(new, torch.Tensor) else new

    return Changed


class StartIsMethod(Bowls):
    def initial_params(self):
        return self._start


DEPEND = "that do not depend on them"
WRONG_TASKS = [
    (with_losses(lambda losses, _: losses[:, None]), r"a tensor of shape \(4,\).*got \(4, 1\)"),
    (with_losses(lambda losses, _: losses[:3]), r"a tensor of shape \(4,\).*got \(3,\)"),
    (with_losses(lambda losses, _: losses.sum().item()), "a tensor of shape.*got float"),
    (with_losses(lambda losses, _: losses.detach()), DEPEND),
    (with_losses(lambda losses, _: nn.Linear(1, N).bias * losses.detach()), DEPEND),  # on a module's own weights
    (with_losses(lambda losses, vector: losses + vector.data.zero_().sum()), "leave `params` as they are"),
    (StartIsMethod, "a property that gives a dict"),
    (with_start(lambda vector, number: {}), "a dict of named tensors"),
    (with_start(lambda vector, number: {"fc.vector": vector.tolist()}), "a dict of named tensors"),
    (with_start(lambda vector, number: number.long()), "of one floating-point type.*torch.int64"),
    (with_start(lambda vector, number: number.double()), r"'fc.vector' \(4, 2\) torch.float32 cpu, .*torch.float64"),
    (with_start(lambda vector, number: number.to("meta")), "on one device.* meta"),
    (with_start(lambda vector, number: {"fc.number": torch.ones(())}), r"a leading axis of one length .*\(\)"),
    (with_start(lambda vector, number: torch.ones(N + 1)), r"a leading axis of one length .*'fc.number' \(5,\)"),
    (with_start(lambda vector, number: number * torch.nan), "got NaN or infinity"),
]


@pytest.mark.parametrize(("kind", "message"), WRONG_TASKS)
def test_wrong_tasks_are_refused_at_their_first_use(kind, message):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}\.(losses|initial_params): .*{message}"):
        USES["rollout"](problem_of(kind))


@pytest.mark.parametrize(
    ("sample", "device", "message"),
    [
        (lambda n: None, None, "expected TaskBatch, got NoneType"),
        (lambda n: Bowls(n - 1), None, "expected 4 tasks, got 3"),
        (Bowls, torch.device("meta"), r"expected tensors on meta, got cpu\. Move them"),
    ],
)
def test_a_sample_that_is_not_what_was_asked_for_is_refused(sample, device, message):
    with pytest.raises((TypeError, ValueError), match=rf"Own\.sample: {message}"):
        draw(problem_of(sample), N, generator(0), device)


FROZEN = dataclass(frozen=True)


def used(*arguments, base=Problem, decorate=FROZEN, **members):
    """The first use of an instance of a class with these members, as if it had been written out."""
    members = {"name": "own", "sample": lambda self, n, draws, device=None: Bowls(n), **members}
    problem = decorate(type("Own", (base,), {"__module__": __name__, **members}))(*arguments)
    draw(problem, N, generator(0))
    return problem


WIDTH = {"__annotations__": {"width": object}}
UNDECORATED = {"decorate": lambda cls: cls}
WRONG_DECLARATIONS = [
    # where the class is defined
    (lambda: used(sample=lambda self, n, draws: None), "Own.sample: expected a method"),
    (lambda: used(sample=lambda self, n, draws, device, steps: None), "Own.sample: expected a method"),
    (lambda: used(base=TaskBatch, losses=lambda self, params: None), r"Own.losses: .*\(self, params, step\)"),
    (lambda: used(base=TaskBatch, losses=property(str)), "Own.losses: expected a method"),
    (lambda: used(**UNDECORATED, __init__=lambda self, width: None), "Own: expected a frozen dataclass"),
    # where it is used
    *(
        (lambda name=name, use=use: use(name), "(Own|FunctionProblem): expected a name")
        for name in (None, "", 3, "../../evil", "a b", "a/b", ".mine")
        for use in (
            lambda name: used(name=name),
            lambda name: draw(Problem.from_functions(name, valley, rosenbrock), N, generator(0)),
            lambda name: problems.register(Problem.from_functions(name, valley, rosenbrock)),
            lambda name: problems.register(type("Own", (Own,), {"name": name})),
        )
    ),
    (lambda: used(**UNDECORATED, **WIDTH, width=3), "Own: expected a dataclass"),
    (lambda: used(base=Quadratics, **UNDECORATED, **WIDTH, width=3), "Own: expected a dataclass"),
    *(
        (lambda value=value: used(value, **WIDTH), r"Own: expected fields that JSON can hold.*objects in `sample`")
        for value in ([1, torch.ones(3)], torch.device("cpu"), torch.Generator(), {1, 2})
    ),
]


@pytest.mark.parametrize(("declare", "message"), WRONG_DECLARATIONS)
def test_a_wrong_declaration_is_refused(declare, message):
    with pytest.raises(TypeError, match=message):
        declare()


@pytest.mark.parametrize(
    "declare",
    [
        lambda: used({"a": [1, (2.5, None, True, float("inf"))]}, **WIDTH),
        lambda: used(3, decorate=dataclass(frozen=True, slots=True), **WIDTH),
        lambda: used(base=Quadratics, **UNDECORATED),
        lambda: used(sample=lambda self, *arguments: Bowls(*arguments[:1])),
        lambda: used(torch.ones(2), config=lambda self: {"name": "own"}, **WIDTH),
    ],
)
def test_a_right_declaration_is_taken(declare):
    assert declare().config()["name"] == "own"


def test_one_of_one_s_own_with_fields_is_made_from_its_configuration():
    mine = problems.register(used(3, name="own-instance", **WIDTH))
    assert problems.make(mine.config()) == mine
    assert problems.make({"name": "own-instance"}) is mine
    assert problems.make({**mine.config(), "width": 4}).width == 4
    with pytest.raises(ValueError, match=r"unknown field of own-instance 'widht'. Did you mean 'width'"):
        problems.make({"name": "own-instance", "widht": 4})


def test_second_derivatives_of_a_loss_that_is_linear_are_zero():
    linear = Problem.from_functions(
        "linear",
        lambda draws: ({"x": torch.ones(2)}, {"c": torch.randn(2, generator=draws)}),
        lambda p, d: p["x"] @ d["c"],
    )
    tasks = linear.sample(3, generator(0, "test"))
    layout, rows = Layout.of(tasks.initial_params), ravel(tasks.initial_params)
    assert not tasks.hessian_products(rows, layout, 0, torch.ones_like(rows)).any()


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_attention_is_batched_and_has_second_derivatives():
    block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    problem = ModuleProblem(
        "attention",
        lambda: copy.deepcopy(block),
        lambda draws: (torch.randn(3, 5, 4, generator=draws), torch.randn(3, 5, 4, generator=draws)),
        functional.mse_loss,
    )
    tasks = problem.sample(2, generator(0, "test"))
    layout, rows = Layout.of(tasks.initial_params), ravel(tasks.initial_params)
    inputs, targets = tasks.batches(generator(tasks.seeds[1], "minibatch", 0))
    expected = functional.mse_loss(block(inputs), targets).item()
    assert tasks.losses(tasks.initial_params, 0)[1].item() == pytest.approx(expected, rel=1e-5)
    assert tasks.hessian_products(rows, layout, 0, torch.ones_like(rows)).isfinite().all()


CARELESS = {
    "minibatches": ModuleProblem(
        "careless", lambda: nn.Linear(1, 1), lambda _: (torch.rand(4, 1), torch.rand(4, 1)), functional.mse_loss
    ),
    "starting points": Problem.from_functions(
        "careless", lambda _: ({"x": torch.randn(2)}, {}), lambda params, data: params["x"].square().sum()
    ),
}


@pytest.mark.parametrize("problem", CARELESS.values(), ids=CARELESS)
def test_draws_from_another_generator_are_refused_wherever_it_is_used(problem):
    for use in (
        lambda: tune("sgd", problem, steps=1, num_tasks=2, learning_rates=[0.1]),
        lambda: meta_train(LSTMRule(), problem, SETTINGS),
        lambda: compare({"SGD": baseline("sgd", 0.1)}, problem, steps=1, num_tasks=2),
    ):
        with pytest.raises(ValueError, match="drew from torch's global generator"):
            use()


def test_a_draw_that_changes_nothing_or_of_another_thread_is_none_of_its(monkeypatch):
    """Such as a data loader's, which draws a number that it does not use, or dropout in a loop beside a training."""

    def batches(draws):
        order = torch.randperm(8, generator=draws).tolist()
        loader = DataLoader(TensorDataset(torch.arange(8.0)[:, None], torch.zeros(8, 1)), 4, sampler=order)
        torch.randn(1)
        return tuple(next(iter(loader)))

    def init(draws):
        torch.manual_seed(int(torch.randint(2**31, (), generator=draws)))
        return {"x": torch.randn(2)}, {}

    for problem in (
        ModuleProblem("loaded", lambda: nn.Linear(1, 1), batches, functional.mse_loss),
        Problem.from_functions("seeded", init, lambda params, data: params["x"].square().sum()),
    ):
        found = [compare({"SGD": baseline("sgd", 0.1)}, problem, steps=2, num_tasks=2)["SGD"] for _ in range(2)]
        assert torch.equal(*found)


class Odd(nn.Module):
    """What a module may have and the check of modules must bear."""

    def __init__(self):
        super().__init__()
        self.sparse = nn.Parameter(torch.randn(1))

    def extra_repr(self):
        return f"{self.sparse.item()} {id(self)}"

    def get_extra_state(self):
        return {}

    def set_extra_state(self, state):
        pass

    def forward(self, inputs):
        return self.sparse * inputs


def test_a_module_may_show_its_weights_and_keep_what_is_no_tensor():
    problem = ModuleProblem("odd", Odd, lambda _: (torch.ones(2), torch.ones(2)), functional.mse_loss)
    assert problem.sample(2, generator(0, "test")).initial_params["fc.sparse"].shape == (2, 1)


def test_a_subclass_may_have_fields():
    @dataclass(frozen=True)
    class Sized(ModuleProblem):
        width: int = 3

    assert Sized("sized", nn.ReLU, len, len).width == 3


def test_batch_normalisation_in_evaluation_mode_keeps_its_statistics():
    def make_model():
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))
        model[1].running_mean.fill_(5.0)
        model[1].eval()
        return model

    def batches(draws):
        return torch.randn(6, 2, generator=draws), torch.randn(6, 2, generator=draws)

    tasks = ModuleProblem("frozen-statistics", make_model, batches, functional.mse_loss).sample(2, generator(0, "test"))
    for number, seed in enumerate(tasks.seeds):
        torch.manual_seed(seed)
        model, (inputs, targets) = make_model(), batches(generator(seed, "minibatch", 3))
        expected = functional.mse_loss(model(inputs), targets).item()
        assert tasks.losses(tasks.initial_params, 3)[number].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "models",
    [
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())),
        (nn.Linear(2, 2), nn.Linear(2, 3)),
        (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))),
    ],
)
def test_modules_that_differ_in_more_than_their_weights_are_refused(models):
    made = itertools.cycle(models)
    problem = ModuleProblem("mixed", lambda: next(made), lambda draws: (torch.zeros(1, 2),) * 2, functional.mse_loss)
    with pytest.raises(ValueError, match="mixed: make_model gave different modules to two tasks"):
        problem.sample(2, generator(0, "test"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Problem.from_functions("no", 1, len), "no: init must be a function, got 1"),
        (lambda: ModuleProblem("no", nn.ReLU, "data", len), "no: batches must be a function, got 'data'"),
        (
            lambda: Problem.from_functions("no", lambda: 0, len).sample(1, generator(0, "a")),
            "init must be a function of",
        ),
    ],
)
def test_what_is_no_function_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("make_model", [lambda: nn.LazyLinear(2), lambda: nn.Embedding(5, 2, sparse=True)])
def test_modules_without_shapes_and_sparse_gradients_are_refused(make_model):
    problem = ModuleProblem("odd", make_model, lambda _: (torch.zeros(1), torch.zeros(1)), functional.mse_loss)
    with pytest.raises(ValueError, match="odd: its module must have parameters of known shapes"):
        problem.sample(1, generator(0, "test"))


def test_minibatches_of_different_shapes_are_refused():
    sizes = itertools.cycle([2, 3])
    problem = ModuleProblem(
        "ragged", lambda: nn.Linear(1, 1), lambda _: (torch.zeros(next(sizes), 1),) * 2, functional.mse_loss
    )
    tasks = problem.sample(2, generator(0, "test"))
    with pytest.raises(ValueError, match=r"ragged: batches gave .* shapes, \[\(2, 1\), \(2, 1\)\] and"):
        tasks.losses(tasks.initial_params, 0)


def test_a_class_of_one_s_own_is_made_by_its_name():
    problems.register(type(used(3, name="own-class", **WIDTH)))
    assert problems.make({"name": "own-class", "width": 3}).width == 3


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (lambda draws: {"x": torch.ones(2)}, "mine: expected init to give two dicts"),
        (
            lambda draws: ({"x": torch.ones(2)}, {"y": 1.0}),
            r"mine: .* give tensors, got data\['y'\] = 1.0",
        ),
        (
            lambda draws: ({"x": torch.ones(int(torch.randint(1, 99, (), generator=draws)))}, {}),
            "mine: init gave params of",
        ),
        (lambda draws: ({"x": torch.ones(2)}, {}), r"mine.losses.*\(4, 2\)"),
    ],
)
def test_wrong_functions_are_refused_by_the_problem_s_name(init, message):
    with pytest.raises((TypeError, ValueError), match=message):
        USES["train"](Problem.from_functions("mine", init, lambda params, data: params["x"]))


LSTM = nn.LSTM(2, 1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda params, data: 1.0, "float"),
        (lambda params, data: params["x"].sum().item(), "item"),
        (lambda params, data: params["x"].sum() if params["x"][0] > 0 else params["y"], "data-dependent control flow"),
        (lambda params, data: params["x"].sum() * data["scale"], "KeyError: 'scale'"),
        (lambda params, data: LSTM(params["x"][None])[0].sum(), "RuntimeError"),
    ],
)
def test_a_loss_that_fails_is_named_and_what_vmap_forbids_is_said(loss, message):
    mine = Problem.from_functions("mine", lambda draws: ({"x": torch.ones(2)}, {}), loss)
    with pytest.raises(ValueError, match=rf"^mine: its loss failed.* runs it on a batch of them.*{message}"):
        USES["compare"](mine)


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (nn.Linear(2, 1), "mine: expected make_model to be a function that makes a module.*got Linear"),
        (lambda: None, "mine: expected make_model to be a function that makes a module.*got None"),
        (lambda: nn.Linear(2, 1).requires_grad_(False), "mine: all parameters of its module are frozen"),
        (nn.Tanh, "mine: all parameters of its module are frozen"),
    ],
)
def test_what_makes_no_module_to_train_is_refused(make_model, message):
    with pytest.raises((TypeError, ValueError), match=message):
        USES["compare"](ModuleProblem("mine", make_model, squares, functional.cross_entropy))


RULES = {
    "LSTM": LSTMRule(3, preprocessing="log-sign"),
    "two LSTMs": GroupedRule({"fc": {"hidden_size": 3}}),
    "memory": NTMBFGS(3),
    "Adam": baseline("adam", 0.1),
}
ESTIMATORS = {
    "first order": FirstOrderEstimator,
    "first order, in chunks": lambda rule: FirstOrderEstimator(rule, 1),
    "second order": SecondOrderEstimator,
    "autograd": lambda rule: AutogradEstimator(rule, second_order=True),
}


def tolerance(dtype):
    return {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_tasks_may_be_of_any_floating_point_type(name, dtype):
    """They keep it, and go the way of those of single precision; meta-gradients are of the rule's type."""
    curves = rollout(RULES[name], Bowls(dtype=dtype), 5)
    assert curves.dtype == dtype
    torch.testing.assert_close(curves.float(), rollout(RULES[name], Bowls(), 5), **tolerance(dtype))
    for kind in ESTIMATORS.values() if name != "Adam" else ():
        estimator, windows = kind(RULES[name]), []
        for each in (dtype, torch.float32):
            estimator.reset(Bowls(dtype=each))
            windows.append([estimator.unroll(3), estimator.unroll(2)])
        for other, single in zip(*windows, strict=True):
            assert other.losses.dtype == dtype
            torch.testing.assert_close(other.losses.float(), single.losses, **tolerance(dtype))
            for weight, gradient in single.meta_gradient.items():
                torch.testing.assert_close(other.meta_gradient[weight], gradient, **tolerance(dtype))


def test_a_problem_in_double_precision_is_trained_on_and_compared():
    problem = problem_of(lambda n: Bowls(n, torch.float64))
    rule = LSTMRule(3, output_scale=0.1)
    history = meta_train(rule, problem, SETTINGS, device="cpu", progress=False)
    assert history.best.validation_loss > 0
    curves = compare({"LSTM": rule, **SGD}, problem, steps=3, num_tasks=N, device="cpu")
    assert curves["LSTM"].dtype == torch.float64
    assert curves.interval("LSTM", over="SGD").value.isfinite().all()
    assert rollout(rule.double(), Bowls(), 3).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_module_that_torch_cannot_copy_is_a_problem():
    """The older weight_norm has a weight that is no leaf."""
    problem = ModuleProblem(
        "normed",
        lambda: nn.utils.weight_norm(nn.Linear(3, 1)),
        lambda generator: (torch.randn(4, 3, generator=generator), torch.ones(4, 1)),
        nn.functional.mse_loss,
    )
    curves = compare({"Adam": baseline("adam", 0.1)}, problem, steps=20, num_tasks=2, device="cpu")
    assert (curves["Adam"][:, -1] < curves["Adam"][:, 0]).all()
