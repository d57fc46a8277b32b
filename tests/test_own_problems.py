"""A problem of one's own: it works if it is what is expected, and if not it is refused where it enters, with a word."""

import json
from dataclasses import dataclass, make_dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from l2l_kit import MetaTraining
from l2l_kit.evaluation import compare, lbfgs, trajectories, tune
from l2l_kit.optimizers import NTMBFGS, GroupedRule, LSTMRule, baseline
from l2l_kit.problems import Problem, Quadratics, TaskBatch
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.training import AutogradEstimator, FirstOrderEstimator, SecondOrderEstimator, meta_train, rollout

N = 4
SETTINGS = MetaTraining(horizon=4, unroll=2, epochs=1, episodes_per_epoch=2, batch_size=N, validation_tasks=N)
FROZEN = dataclass(frozen=True)


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


def problem_of(make_optimizees):
    """A problem that samples what a function makes of n."""

    @dataclass(frozen=True)
    class Own(Problem):
        name: ClassVar[str] = "own"

        def sample(self, n, generator, device=None):
            return make_optimizees(n)

    return Own()


# Every way into the kit.
USES = {
    "train": lambda problem: meta_train(LSTMRule(3), problem, SETTINGS, device="cpu", progress=False),
    "compare": lambda problem: compare({"SGD": baseline("sgd", 0.1)}, problem, steps=2, num_tasks=N, device="cpu"),
    "tune": lambda problem: tune("sgd", problem, steps=2, num_tasks=N, learning_rates=[0.1], device="cpu"),
    "trajectories": lambda problem: trajectories({"SGD": baseline("sgd", 0.1)}, problem, steps=2),
    "rollout": lambda problem: rollout(LSTMRule(3), problem.sample(N, generator(0)), 2),
    "unroll": lambda problem: FirstOrderEstimator(LSTMRule(3)).reset(problem.sample(N, generator(0))),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_is_as_expected_is_taken(use):
    use(problem_of(Bowls))


def test_the_check_adds_no_evaluation():
    tasks = Bowls()
    rollout(baseline("sgd", 0.1), tasks, 5)
    assert tasks.evaluations == 6
    list(lbfgs(one := Bowls(1), 0))
    assert one.evaluations == 1
    unroller = FirstOrderEstimator(LSTMRule(3))
    unroller.reset(another := Bowls())
    unroller.unroll(3)
    assert another.evaluations == 4


def shaped(change):
    """`Bowls` whose losses are changed."""

    class Changed(Bowls):
        def losses(self, params, step):
            return change(super().losses(params, step), params)

    return Changed


def starting(change):
    """`Bowls` whose starting points are changed."""

    class Changed(Bowls):
        @property
        def initial_params(self):
            return change({name: tensor.clone() for name, tensor in self._start.items()})

        def losses(self, params, step):
            return super().losses({**self._start, **params}, step)

    return Changed


def changed_in_place(losses, params):
    params["fc.vector"].mul_(2)
    return losses


@torch.no_grad()
def changed_without_graph(losses, params):
    params["fc.vector"].clamp_(-0.01, 0.01)
    return losses


def changed_behind_autograd(losses, params):
    params["fc.vector"].data.zero_()
    return losses


class StartIsMethod(Bowls):
    def initial_params(self):
        return self._start


class StartAlone(Bowls):
    """A single tensor, whose memory would be the starting points' own."""

    @property
    def initial_params(self):
        return {"vector": self._start["fc.vector"]}

    def losses(self, params, step):
        with torch.no_grad():
            params["vector"].add_(1)
        return params["vector"].square().sum(dim=1)


class GradientsOfAnotherShape(Bowls):
    def losses_and_gradients(self, rows, layout, step):
        losses, gradients = super().losses_and_gradients(rows, layout, step)
        return losses, gradients[:, :2]


WRONG_OPTIMIZEES = {
    # losses
    "one loss for all": (
        shaped(lambda losses, _: losses.mean()),
        ValueError,
        r"expected shape \(4,\).*got \(\)",
    ),
    "a column of losses": (
        shaped(lambda losses, _: losses[:, None]),
        ValueError,
        r"shape \(4,\).*got \(4, 1\)",
    ),
    "a loss for each coordinate": (
        shaped(lambda _, params: params["fc.vector"].square()),
        ValueError,
        r"expected shape \(4,\).*got \(4, 2\)\. Sum or average",
    ),
    "too few losses": (shaped(lambda losses, _: losses[:3]), ValueError, r"expected shape \(4,\).*got \(3,\)"),
    "a number": (
        shaped(lambda losses, _: losses.sum().item()),
        TypeError,
        "expected a tensor.*got float",
    ),
    "a list": (shaped(lambda losses, _: list(losses)), TypeError, r"expected a tensor of shape \(4,\), got list"),
    "nothing": (shaped(lambda *_: None), TypeError, r"expected a tensor of shape \(4,\), got NoneType"),
    "numpy": (shaped(lambda losses, _: losses.detach().numpy()), TypeError, "got ndarray"),
    "detached": (shaped(lambda losses, _: losses.detach()), ValueError, "that do not depend on them"),
    "through numpy": (
        shaped(lambda losses, _: torch.from_numpy(losses.detach().numpy())),
        ValueError,
        "that do not depend on them",
    ),
    "of something else": (
        shaped(lambda losses, _: torch.ones(4, requires_grad=True) * losses.detach()),
        ValueError,
        "that do not depend on them",
    ),
    "whole numbers": (shaped(lambda losses, _: losses.long()), ValueError, "that do not depend on them"),
    "changed in place": (shaped(changed_in_place), ValueError, "leave `params` as they are"),
    "changed without a graph": (shaped(changed_without_graph), ValueError, "leave `params` as they are"),
    "changed behind autograd": (shaped(changed_behind_autograd), ValueError, "leave `params` as they are"),
    "changed start": (StartAlone, ValueError, "leave `params` as they are"),
    "gradients": (GradientsOfAnotherShape, ValueError, r"expected gradients of shape \(4, 3\), got \(4, 2\)"),
    # starting points
    "a tensor": (starting(lambda start: start["fc.vector"]), TypeError, r"start: expected a dict of named tensors"),
    "a tuple": (starting(lambda start: tuple(start.values())), TypeError, "expected a dict of named tensors"),
    "no parameters": (starting(lambda _: {}), TypeError, "expected a dict of named tensors"),
    "lists": (starting(lambda start: {"fc.vector": start["fc.vector"].tolist()}), TypeError, "got list as 'fc.vector'"),
    "names that are none": (starting(lambda start: {0: start["fc.vector"]}), TypeError, "got Tensor as 0"),
    "a method": (StartIsMethod, TypeError, "got a method. Put @property above it"),
    "integers": (
        starting(lambda start: start | {"fc.number": torch.ones(N, dtype=torch.long)}),
        ValueError,
        "expected floating-point tensors, got torch.int64 as 'fc.number'",
    ),
    "complex numbers": (
        starting(lambda start: start | {"fc.number": torch.ones(N, dtype=torch.complex64)}),
        ValueError,
        "expected floating-point tensors, got torch.complex64",
    ),
    "mixed types": (
        starting(lambda start: start | {"fc.number": start["fc.number"].double()}),
        ValueError,
        r"expected one dtype for all tensors, got torch.float32 \(fc.vector\), torch.float64 \(fc.number\)",
    ),
    "mixed devices": (
        starting(lambda start: start | {"fc.number": start["fc.number"].to("meta")}),
        ValueError,
        r"expected one device for all tensors, got cpu \(fc.vector\), meta \(fc.number\)",
    ),
    "no leading axis": (
        starting(lambda start: start | {"fc.number": torch.ones(())}),
        ValueError,
        r"expected a leading axis .*'fc.number': \(\)",
    ),
    "another number of one": (
        starting(lambda start: start | {"fc.number": torch.ones(N + 1)}),
        ValueError,
        r"expected a leading axis .*'fc.vector': \(4, 2\), 'fc.number': \(5,\)",
    ),
    "NaN at the start": (
        starting(lambda start: start | {"fc.number": torch.full((N,), torch.nan)}),
        ValueError,
        "got NaN or infinity in 'fc.number'",
    ),
    "infinity at the start": (
        starting(lambda start: start | {"fc.number": torch.full((N,), torch.inf)}),
        ValueError,
        "got NaN or infinity in 'fc.number'",
    ),
}


@pytest.mark.parametrize("use", ["train", "compare", "tune", "rollout", "unroll"])
@pytest.mark.parametrize(("kind", "error", "message"), WRONG_OPTIMIZEES.values(), ids=WRONG_OPTIMIZEES)
def test_wrong_optimizees_are_refused_at_their_first_use(kind, error, message, use):
    with pytest.raises(error, match=message) as caught:
        USES[use](problem_of(kind))
    assert str(caught.value).startswith(f"{kind.__name__}.")


WRONG_SAMPLES = {
    "nothing": (lambda n: None, TypeError, "expected TaskBatch, got NoneType"),
    "a dict": (lambda n: Bowls(n).initial_params, TypeError, "expected TaskBatch, got dict"),
    "a class": (lambda n: Bowls, TypeError, "expected TaskBatch, got ABCMeta"),
    "too few": (lambda n: Bowls(n - 1), ValueError, r"expected \d+ optimizees, got \d+"),
    "always one": (lambda n: Bowls(1), ValueError, "expected 4 optimizees, got 1"),
}


@pytest.mark.parametrize("use", ["train", "compare", "tune"])
@pytest.mark.parametrize(("sample", "error", "message"), WRONG_SAMPLES.values(), ids=WRONG_SAMPLES)
def test_a_sample_that_is_not_what_was_asked_for_is_refused(sample, error, message, use):
    with pytest.raises(error, match=rf"Own\.sample: {message}"):
        USES[use](problem_of(sample))


def test_a_sample_on_another_device_is_refused():
    with pytest.raises(ValueError, match=r"Own\.sample: expected tensors on meta, got cpu\. Move them"):
        draw(problem_of(Bowls), N, generator(0), torch.device("meta"))


NO_PROBLEMS = {"its class": Quadratics, "its name": "quadratics", "optimizees": Bowls(), "nothing": None}


@pytest.mark.parametrize("use", ["train", "compare", "tune", "trajectories"])
@pytest.mark.parametrize("problem", NO_PROBLEMS.values(), ids=NO_PROBLEMS)
def test_what_is_no_problem_is_refused(problem, use):
    with pytest.raises(TypeError, match="expected a problem"):
        USES[use](problem)


def sample(self, n, generator, device=None):
    return Bowls(n)


def defined(base=Problem, decorate=FROZEN, annotations=(), **members):
    """A subclass with these members, as if it had been written out."""
    members = {"__annotations__": dict(annotations), "__module__": __name__, **members}
    return decorate(type("Own", (base,), members))


def made(*arguments, base=Problem, decorate=FROZEN, annotations=(), **members):
    """An instance of such a class."""
    return defined(base, decorate, annotations, **{"name": "own", "sample": sample, **members})(*arguments)


def with_field(value):
    return lambda: made(value, annotations={"data": object})


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("no copies")


WRONG_DECLARATIONS = {
    # where the class is defined
    "no name": (lambda: defined(sample=sample), "expected a name"),
    "a name without a value": (lambda: defined(annotations={"name": ClassVar[str]}, sample=sample), "expected a name"),
    "an empty name": (lambda: defined(name="", sample=sample), "expected a name"),
    "a name that is a number": (lambda: defined(name=3, sample=sample), "expected a name.*got 3"),
    "a name that is a property": (lambda: defined(name=property(str), sample=sample), "expected a name"),
    "sample without a device": (
        lambda: defined(name="own", sample=lambda self, n, generator: None),
        "sample: expected",
    ),
    "sample without a generator": (lambda: defined(name="own", sample=lambda self, n: None), "sample: expected"),
    "sample without self": (
        lambda: defined(name="own", sample=lambda n, generator, device: None),
        "sample: expected",
    ),
    "sample with more": (
        lambda: defined(name="own", sample=lambda self, n, generator, device, steps: None),
        r"expected a method \(self, n, generator, device\), got \(self, n, generator, device, steps\)",
    ),
    "sample with keywords alone": (
        lambda: defined(name="own", sample=lambda self, n, *, generator, device=None: None),
        "sample: expected",
    ),
    "sample that is a property": (lambda: defined(name="own", sample=property(str)), "sample: expected"),
    "sample that is a value": (lambda: defined(name="own", sample=3), "Own.sample: expected.*got 3"),
    "losses without a step": (
        lambda: defined(TaskBatch, lambda cls: cls, losses=lambda self, params: None),
        r"Own.losses: expected a method \(self, params, step\), got \(self, params\)",
    ),
    "losses that are a property": (
        lambda: defined(TaskBatch, lambda cls: cls, losses=property(str)),
        "Own.losses: expected",
    ),
    # where an instance is made
    "no sample": (lambda: defined(name="own")(), "sample"),
    "no dataclass": (lambda: made(decorate=lambda cls: cls), r"Put @dataclass\(frozen=True\) above"),
    "no dataclass but fields": (
        lambda: made(3, decorate=lambda cls: cls, annotations={"width": int}),
        r"Put @dataclass\(frozen=True\) above",
    ),
    "no dataclass below one": (
        lambda: made(base=Quadratics, decorate=lambda cls: cls, annotations={"width": int}, width=3),
        r"Put @dataclass\(frozen=True\) above",
    ),
    "own __init__ below one": (
        lambda: made(3, base=Quadratics, decorate=lambda cls: cls, __init__=lambda self, width: None),
        r"Put @dataclass\(frozen=True\) above",
    ),
    "not frozen": (
        lambda: made(decorate=dataclass),
        r"frozen dataclass.*Write @dataclass\(frozen=True\)",
    ),
    # fields that JSON cannot hold
    "a tensor": (with_field(torch.ones(3)), r"got data \(Tensor\)\. Make tensors and other objects in `sample`"),
    "a tensor with a graph": (with_field(torch.ones(3, requires_grad=True) * 2), r"got data \(Tensor\)"),
    "a tensor in a list": (with_field([1, torch.ones(3)]), r"got data \(list\)"),
    "an array": (with_field(torch.ones(3).numpy()), r"got data \(ndarray\)"),
    "a number of numpy's": (with_field(torch.ones(3).long().numpy()[0]), r"got data \(int64\)"),
    "a device": (with_field(torch.device("cpu")), r"got data \(device\)"),
    "a type": (with_field(torch.float64), r"got data \(dtype\)"),
    "a generator": (with_field(torch.Generator()), r"got data \(Generator\)"),
    "a module": (with_field(torch.nn.Linear(1, 1)), r"got data \(Linear\)"),
    "a function": (with_field(sample), r"got data \(function\)"),
    "a set": (with_field({1, 2}), r"got data \(set\)"),
    "bytes": (with_field(b"text"), r"got data \(bytes\)"),
    "a complex number": (with_field(1j), r"got data \(complex\)"),
    "keys that are no words": (with_field({(1, 2): 3}), r"got data \(dict\)"),
    "what cannot be copied": (with_field(Unpicklable()), r"got data \(Unpicklable\)"),
    "a tensor in a dataclass": (
        with_field(make_dataclass("Inner", ["inner"])(torch.ones(2))),
        r"got data \(Inner\)",
    ),
}
WRONG_DECLARATIONS["itself in a list"] = with_field((loop := [1], loop.append(loop))[0]), r"got data \(list\)"


@pytest.mark.parametrize(("declare", "message"), WRONG_DECLARATIONS.values(), ids=WRONG_DECLARATIONS)
def test_a_wrong_declaration_is_refused(declare, message):
    """Before anything is sampled; the message begins with the class's name, unless it is Python's own."""
    with pytest.raises(TypeError, match=message) as caught:
        declare()
    assert "Own" in str(caught.value)


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)


RIGHT_DECLARATIONS = {
    "numbers and words": lambda: made("a", annotations={"data": object}),
    "lists, dicts and tuples": lambda: made({"a": [1, (2.5, None, True)]}, annotations={"data": object}),
    "a dataclass": lambda: made(Inner(), annotations={"data": object}),
    "infinity": lambda: made(float("inf"), annotations={"data": object}),
    "slots": lambda: made(3, decorate=dataclass(frozen=True, slots=True), annotations={"data": int}),
    "below one, with nothing more": lambda: made(base=Quadratics, decorate=lambda cls: cls),
    "other names of the arguments": lambda: made(sample=lambda self, count, draws, where=None: Bowls(count)),
    "any arguments": lambda: made(sample=lambda self, *arguments: Bowls(*arguments[:1])),
    "a static sample": lambda: made(sample=staticmethod(lambda n, generator, device=None: Bowls(n))),
    "a configuration of its own": lambda: made(
        torch.ones(2), annotations={"data": Tensor}, config=lambda self: {"name": "own"}
    ),
}


@pytest.mark.parametrize("declare", RIGHT_DECLARATIONS.values(), ids=RIGHT_DECLARATIONS)
def test_a_right_declaration_is_taken(declare):
    problem = declare()
    json.dumps(problem.config())
    draw(problem, N, generator(0))


def test_what_leaves_sample_to_others_needs_no_name():
    class Family(Problem):
        pass

    assert defined(Family, name="own", sample=sample)().config() == {"name": "own"}


def test_an_error_of_the_losses_own_says_whose_it_is():
    def broken(losses, params):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        rollout(baseline("sgd", 0.1), shaped(broken)(), 1)
    assert caught.value.__notes__ == ["This was raised by the losses of Changed at the starting points."]


RULES = {
    "LSTM": LSTMRule(3, preprocessing="log-sign"),
    "two LSTMs": GroupedRule({"fc": {"hidden_size": 3}}),
    "averaging": LSTMRule(3, global_averaging_cells=1),
    "memory": NTMBFGS(3),
    "Adam": baseline("adam", 0.1),
}
LEARNED = [name for name in RULES if name != "Adam"]
TYPES = [torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_optimizees_may_be_of_any_floating_point_type(rule, dtype):
    """They keep it, and go the way of those of single precision."""
    curves = rollout(rule, Bowls(dtype=dtype), 5)
    assert curves.dtype == dtype
    torch.testing.assert_close(curves.float(), rollout(rule, Bowls(), 5), rtol=0.1, atol=0.1)
    if dtype == torch.float64:
        torch.testing.assert_close(curves.float(), rollout(rule, Bowls(), 5), rtol=1e-4, atol=1e-5)


UNROLLERS = {
    "replay": FirstOrderEstimator,
    "replay in chunks": lambda rule: FirstOrderEstimator(rule, 1),
    "exact": SecondOrderEstimator,
    "exact in chunks": lambda rule: SecondOrderEstimator(rule, 1),
    "autograd": lambda rule: AutogradEstimator(rule, second_order=False),
    "autograd, dashed edges": lambda rule: AutogradEstimator(rule, second_order=True),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (make, name)
        for make in UNROLLERS
        for name in LEARNED
        if not (make.startswith("exact") and not RULES[name].coordinatewise)
    ],
)
def test_meta_gradients_of_optimizees_of_any_floating_point_type(make, rule, dtype):
    """They are of the rule's type."""
    windows = []
    for each in (dtype, torch.float32):
        unroller = UNROLLERS[make](RULES[rule])
        unroller.reset(Bowls(dtype=each))
        windows.append([unroller.unroll(3), unroller.unroll(2)])
    close = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}
    for other, single in zip(*windows, strict=True):
        assert other.losses.dtype == dtype
        torch.testing.assert_close(other.losses.float(), single.losses, **close)
        for name, gradient in single.meta_gradient.items():
            assert other.meta_gradient[name].dtype == torch.float32
            torch.testing.assert_close(other.meta_gradient[name], gradient, **close)


def test_a_problem_in_double_precision_is_trained_on_and_compared():
    problem = problem_of(lambda n: Bowls(n, torch.float64))
    rule = LSTMRule(3, output_scale=0.1)
    history = meta_train(rule, problem, SETTINGS, device="cpu", progress=False)
    assert history.best.validation_loss > 0
    curves = compare({"LSTM": rule, "SGD": baseline("sgd", 0.1)}, problem, steps=3, num_tasks=N, device="cpu")
    assert curves["LSTM"].dtype == torch.float64
    assert curves.interval("LSTM", over="SGD").value.isfinite().all()
    assert len(curves.to_frame()) == 2 * 4
    assert rollout(rule.double(), Bowls(), 3).dtype == torch.float32
