"""What is measured along the way, against rollouts and forward passes written out here."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from l2l_kit import data
from l2l_kit.evaluation import compare, metrics_on_test_set, proposed_steps
from l2l_kit.optimizers import LSTMOptimizer, baseline
from l2l_kit.problems import MNIST, Quadratics
from l2l_kit.randomness import generator

DIGITS = MNIST(source="embedded", hidden=(3,), batch_size=16)


def optimizers():
    return {"LSTM": LSTMOptimizer(hidden_size=2, output_scale=0.1), "SGD": baseline("sgd", 0.5)}


class Elsewhere(nn.Module):
    """Proposes nothing, and notes where it is put."""

    def __init__(self):
        super().__init__()
        self.places = []

    def to(self, device):
        self.places.append(torch.device(device))

    def init(self, params):
        return None

    def update(self, gradients, state):
        return {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}, state


@pytest.fixture(scope="module")
def table():
    return metrics_on_test_set(optimizers(), DIGITS, at=[0, 2, 5], num_tasks=2, seed=3, device="cpu")


class TestHeldOut:
    def test_it_has_a_row_for_each_optimizer_and_step(self, table):
        assert list(table.columns) == ["optimizer", "step", "loss", "accuracy"]
        assert list(zip(table["optimizer"], table["step"], strict=True)) == [
            (name, step) for name in ("LSTM", "SGD") for step in (0, 2, 5)
        ]

    @pytest.mark.parametrize("step", [0, 2, 5])
    def test_gradient_descent_does_on_test_images_as_torch_says(self, table, step):
        """One network after the other, trained on the minibatches of `losses` and shown all the test images."""
        images, labels = data.load("mnist", "embedded").split("test")
        tasks = DIGITS.sample(2, generator(3, "test"))
        params = {name: tensor.clone().requires_grad_() for name, tensor in tasks.initial_params.items()}
        descent = torch.optim.SGD(params.values(), lr=0.5)
        for t in range(step):
            descent.zero_grad()
            tasks.losses(params, t).sum().backward()
            descent.step()
        losses, accuracies = [], []
        with torch.no_grad():
            for one in range(2):
                network = nn.Sequential(nn.Linear(784, 3), nn.Sigmoid(), nn.Linear(3, 10))
                for layer, index in ((network[0], 0), (network[2], 1)):
                    layer.weight.copy_(params[f"weight{index}"][one].T)
                    layer.bias.copy_(params[f"bias{index}"][one])
                logits = network(images.flatten(1) / 255)
                losses.append(functional.cross_entropy(logits, labels).item())
                accuracies.append((logits.argmax(dim=1) == labels).float().mean().item())
        (row,) = table[(table["optimizer"] == "SGD") & (table["step"] == step)].itertuples()
        assert row.loss == pytest.approx(sum(losses) / 2, rel=1e-4)
        assert row.accuracy == pytest.approx(sum(accuracies) / 2, abs=1e-6)

    def test_optimizers_meet_the_same_optimizees(self, table):
        assert table.groupby("step").get_group(0)[["loss", "accuracy"]].nunique().tolist() == [1, 1]
        assert table.groupby("step").get_group(5)["loss"].nunique() == 2

    def test_problems_without_test_images_are_refused(self):
        with pytest.raises(TypeError, match="no test images"):
            metrics_on_test_set(optimizers(), Quadratics(2), at=[0], num_tasks=1, device="cpu")


class TestProposedSteps:
    def test_gradient_descent_goes_against_the_gradient_as_far_as_its_rate(self):
        """Its `size` at every step is lr times the root mean square of that step's gradient."""
        lr, num_tasks, steps = 0.01, 3, 4
        table = proposed_steps(
            {"SGD": baseline("sgd", lr)}, Quadratics(5), steps=steps, num_tasks=num_tasks, device="cpu"
        )
        assert list(table.columns) == ["optimizer", "step", "parameter", "size", "descent"]
        assert table["step"].tolist() == [1, 2, 3, 4]
        assert set(table["parameter"]) == {"theta"}
        assert table["descent"].tolist() == pytest.approx([1] * steps, abs=1e-3)
        tasks = Quadratics(5).sample(num_tasks, generator(0, "test"))
        theta = tasks.theta
        for size in table["size"]:
            residual = (tasks.W @ theta[:, :, None])[:, :, 0] - tasks.y
            gradient = 2 * (tasks.W.mT @ residual[:, :, None])[:, :, 0]
            assert size == pytest.approx(lr * gradient.square().mean(dim=1).sqrt().mean().item(), rel=1e-3)
            theta = theta - lr * gradient

    def test_adam_first_steps_as_far_as_its_rate_in_every_coordinate(self):
        """lr · g / (|g| + ε): all coordinates alike, so the cosine with g is Σ|g| / (√d ‖g‖)."""
        table = proposed_steps({"Adam": baseline("adam", 0.02)}, Quadratics(5), steps=1, num_tasks=3, device="cpu")
        tasks = Quadratics(5).sample(3, generator(0, "test"))
        theta = tasks.theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(tasks.losses({"theta": theta}).sum(), theta)
        cosine = gradient.abs().sum(dim=1) / (5**0.5 * gradient.norm(dim=1))
        assert table["size"].item() == pytest.approx(0.02, rel=1e-4)
        assert table["descent"].item() == pytest.approx(cosine.mean().item(), rel=1e-3)

    def test_it_meets_the_minibatch_of_each_step_and_tells_parameters_apart(self):
        """Gradient descent goes against the gradient of the minibatch that it was given: no other one's."""
        table = proposed_steps({"SGD": baseline("sgd", 0.1)}, DIGITS, steps=3, num_tasks=2, device="cpu")
        assert table["parameter"].tolist() == ["weight0", "bias0", "weight1", "bias1"] * 3
        assert table["descent"].tolist() == pytest.approx([1] * 12, abs=1e-3)
        assert table["size"].nunique() == 12

    def test_a_step_that_is_none_has_no_direction(self):
        table = proposed_steps({"none": Elsewhere()}, Quadratics(2), steps=1, num_tasks=1, device="cpu")
        assert table[["size", "descent"]].to_numpy().tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "measure",
    [
        lambda chosen: compare(chosen, DIGITS, steps=1, num_tasks=1, device="cpu"),
        lambda chosen: metrics_on_test_set(chosen, DIGITS, at=[1], num_tasks=1, device="cpu"),
        lambda chosen: proposed_steps(chosen, DIGITS, steps=1, num_tasks=1, device="cpu"),
    ],
    ids=["compare", "held_out", "proposed_steps"],
)
def test_learned_optimizers_are_put_where_the_optimizees_are(measure):
    optimizer = Elsewhere()
    measure({"elsewhere": optimizer})
    assert optimizer.places == [torch.device("cpu")]
