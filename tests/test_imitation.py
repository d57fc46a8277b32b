"""Imitation: what is recorded, that LSTMs come to move as their teacher does, and recipes that begin with it."""

from dataclasses import replace

import pytest
import torch

from l2l_kit import zoo
from l2l_kit.errors import MetaTrainingDivergedError, UnknownNameError
from l2l_kit.making import imitation, train
from l2l_kit.making.imitation import FADING, Imitation, _fading, _met, _record, imitate
from l2l_kit.making.recipes import read_recipes
from l2l_kit.optimizers import GroupedBaselines, GroupedRule, LSTMRule, baseline
from l2l_kit.problems import Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import rollout, trajectory

BRIEF = Imitation(networks=3, horizon=100, unroll=10, passes=30, lr=0.01)
LSTM = {"preprocessing": "log-sign", "output_scale": 0.1}


def test_a_recording_of_the_teacher_has_its_own_updates_as_targets():
    teacher, tasks = baseline("adam", 0.05, 20.0), Quadratics().sample(1, generator(0, "networks"))
    layout, gradients, losses = _met(teacher, tasks, BRIEF, 0)
    recording = _record(teacher, layout, gradients)
    points = torch.cat([point.params for point in trajectory(teacher, tasks, BRIEF.horizon)])
    moved = points[1:] - points[:-1]
    # Coordinates are recorded in an order that is drawn.
    torch.testing.assert_close(recording.targets.sort(dim=1).values, moved.sort(dim=1).values, atol=1e-5, rtol=1e-4)
    assert torch.equal(losses, rollout(teacher, tasks, BRIEF.horizon)[0])
    assert recording.gradients.shape == recording.targets.shape == (BRIEF.horizon, 10)


def test_fading_gradients_fall_steadily_and_another_way_for_each_network():
    gradients = torch.ones(BRIEF.horizon, 3)
    falls = []
    for number in (0, 1):
        faded = _fading(gradients, BRIEF, number)
        logs = faded[:, 0].log()
        assert torch.equal(faded[0], gradients[0])
        assert (logs.diff() < 0).all()
        assert logs.diff().std() < 1e-4
        assert -FADING <= logs[-1] < 0
        falls.append(logs[-1].item())
    assert falls[0] != falls[1]


def test_a_recording_goes_on_from_where_the_coordinates_are_and_may_be_a_sample():
    """A weight decay reads the parameters; all begin at zero."""
    teacher, tasks = baseline("adamw", 0.05), Quadratics().sample(1, generator(0, "networks"))
    layout, gradients, _ = _met(teacher, tasks, replace(BRIEF, sample=4), 0)
    recording = _record(teacher, layout, gradients)
    assert recording.gradients.shape == recording.targets.shape == (BRIEF.horizon, 4)
    place, moment, second = torch.zeros(3, 4)
    for step, (gradient, target) in enumerate(zip(recording.gradients, recording.targets, strict=True), 1):
        moment, second = moment.lerp(gradient, 0.1), second.lerp(gradient**2, 0.001)
        adams = moment / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(target, -0.05 * (adams + 0.01 * place), atol=1e-6, rtol=1e-3)
        place = place + target


def test_the_teacher_drives_two_networks_and_then_the_pupil_and_each_is_recorded_as_it_was_and_fading(monkeypatch):
    drivers, given = [], []
    monkeypatch.setattr(imitation, "_met", lambda driver, *rest: drivers.append(driver) or _met(driver, *rest))
    monkeypatch.setattr(imitation, "_pass", lambda *arguments: given.append(arguments[2][:]) or 0.0)
    optimizer, teacher = LSTMRule(**LSTM), baseline("adam", 0.05)
    list(imitate(optimizer, teacher, Quadratics(), replace(BRIEF, passes=1)))
    assert drivers == [teacher, teacher, optimizer]
    assert [len(recordings) for recordings in given] == [2, 4, 6]
    ends = [recording.gradients[-1].abs().sum() / recording.gradients[0].abs().sum() for recording in given[-1]]
    assert all(faded < as_it_was for as_it_was, faded in zip(ends[::2], ends[1::2], strict=True))


@pytest.mark.parametrize("grouped", [False, True])
def test_it_comes_to_move_as_its_teacher_does(grouped):
    problem, teacher = Quadratics(), baseline("adam", 0.05, 50.0)
    optimizer = GroupedRule({"theta": LSTM}) if grouped else LSTMRule(**LSTM)
    teacher = GroupedBaselines({"theta": teacher}) if grouped else teacher
    tasks = problem.sample(32, generator(0, "apart"))
    before = rollout(optimizer, tasks, 50)[:, -1].mean()
    taught = list(imitate(optimizer, teacher, problem, BRIEF))
    after, aim = (rollout(one, tasks, 50)[:, -1].mean() for one in (optimizer, teacher))
    assert [one.network for one in taught] == [1, 2, 3]
    assert taught[-1].error < 0.2
    assert abs(after - aim) < 0.2 * abs(before - aim)
    assert all(weight.grad is None for weight in optimizer.parameters())


def test_the_same_seed_gives_the_same_bits():
    def weights(seed):
        optimizer = LSTMRule(**LSTM)
        settings = Imitation(networks=1, horizon=50, unroll=5, passes=3, seed=seed)
        list(imitate(optimizer, baseline("adam", 0.05), Quadratics(), settings))
        return torch.cat([weight.flatten() for weight in optimizer.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("wrong", [{"networks": 0}, {"lr": -1.0}, {"unroll": 20, "horizon": 100}, {"passes": 1.5}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Imitation(**wrong)


def test_coordinates_that_depend_on_each_other_are_refused():
    with pytest.raises(ValueError, match="independent"):
        next(imitate(LSTMRule(global_averaging_cells=1), baseline("adam", 0.1), Quadratics(), BRIEF))


RECIPE = """
[problem]
name = "quadratics"
dim = 3
[optimizer]
hidden_size = 4
forget_bias = [0.0, 3.0]
[imitation]
networks = 1
horizon = 20
unroll = 2
passes = 2
teacher = { name = "adam", lr = 0.1, decay = 10.0 }
[training]
horizon = 4
unroll = 2
epochs = 1
episodes_per_epoch = 1
batch_size = 2
validation_tasks = 2
"""


def test_a_recipe_with_imitation_is_followed_and_its_imitation_made_once(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(RECIPE)
    (recipe,) = read_recipes(tmp_path / "mine.toml")
    made = train.train_recipe(recipe, tmp_path)
    card, fingerprint = zoo.card(made), zoo.load(made).fingerprint()
    assert card["imitation"]["teacher"] == {"name": "adam", "lr": 0.1, "decay": 10.0}
    assert card["optimizer"]["forget_bias"] == [0.0, 3.0]
    (checkpoint,) = (tmp_path / "cache" / "runs" / "mine").glob("checkpoint-*.safetensors")
    checkpoint.unlink()
    with monkeypatch.context() as changed:
        changed.setattr(train, "imitate", None)  # a second imitation would fail
        train.train_recipe(recipe, tmp_path)
    further = replace(recipe, imitation=replace(recipe.imitation, passes=recipe.imitation.passes + 1))
    made.unlink()
    other = train.train_recipe(further, tmp_path)
    assert zoo.card(other)["imitation"]["passes"] == further.imitation.passes
    assert zoo.load(other).fingerprint() != fingerprint, "it was taught again, and not taken from the checkpoint"


def test_a_wrong_teacher_is_named(tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE.replace("adam", "adan"))
    with pytest.raises(ValueError, match="adan"):
        read_recipes(tmp_path / "mine.toml")


def test_one_that_diverges_is_not_kept(tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE.replace('name = "adam", lr = 0.1', 'name = "sgd", lr = 1e20'))
    (recipe,) = read_recipes(tmp_path / "mine.toml")
    for _ in range(2):
        with pytest.raises(MetaTrainingDivergedError, match=r"the error became .* on network 1"):
            train.train_recipe(recipe, tmp_path, device="cpu")
    assert not list(tmp_path.rglob("imitation-*.safetensors"))


def test_a_teacher_without_a_kind_of_parameter_is_named():
    teacher = GroupedBaselines({"thetas": baseline("adam", 0.1)})
    with pytest.raises(UnknownNameError, match=r"kind of parameter 'theta'. Did you mean 'thetas'"):
        next(imitate(LSTMRule(4), teacher, Quadratics(), BRIEF, device="cpu"))
