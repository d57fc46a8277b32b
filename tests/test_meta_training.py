"""The meta-training loop: it learns, the same bits each time, through kills, and stops where numbers break."""

import gc
import itertools
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import ClassVar

import pytest
import torch
from small import PROBLEMS, RULES, Network
from tqdm import tqdm

from l2l_kit import storage
from l2l_kit.errors import MetaTrainingDivergedError, WeightsFileError
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import Problem, Quadratics, QuadraticTasks
from l2l_kit.randomness import generator
from l2l_kit.training import FirstOrderEstimator, History, MetaTrainer, MetaTraining, meta_train, rollout
from l2l_kit.training.meta_training import validation_batch

SETTINGS = MetaTraining(
    horizon=6, unroll=4, epochs=3, episodes_per_epoch=2, batch_size=5, meta_lr=0.01, validation_tasks=7
)
EVENTS = 1 + 3 * (2 + 1)
RUNS = {
    "first order": {},
    "second order": {"second_derivatives": True},
    "sampled": {"sample": 1},
    "best in between": {"meta_lr": 0.03, "schedule": "constant", "clip_norm": None, "seed": 2},
}
every_run = pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
both_orders = pytest.mark.parametrize("second_derivatives", [False, True])


def make_optimizer(**arguments):
    return LSTMRule(4, **arguments)


def make_trainer(checkpoint=None, problem=None, optimizer=None, **changes):
    optimizer, problem = optimizer or make_optimizer(), problem or Quadratics(dim=2)
    return MetaTrainer(optimizer, problem, replace(SETTINGS, **changes), checkpoint=checkpoint, device="cpu")


def finish(trainer):
    for _ in trainer.run():
        pass
    return trainer


def copied(optimizer):
    return {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}


def same_weights(optimizer, weights):
    return all(torch.equal(tensor, weights[name]) for name, tensor in optimizer.state_dict().items())


def outcome(trainer):
    """Everything that a run leaves behind, but the clock."""
    losses = [(record.epoch, record.training_loss, record.validation_loss) for record in trainer.history.records]
    return copied(trainer.rule), losses


def checkpointed(path):
    """All of a checkpoint but the clock."""
    tensors, about = storage.read_tensors(path, 1)
    for record in about["history"]:
        del record["seconds"]
    return tensors, about


def assert_same_bits(found, expected):
    (weights, losses), (expected_weights, expected_losses) = found, expected
    assert weights.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        assert torch.equal(weights[name], tensor), name
    assert repr(losses) == repr(expected_losses)  # repr: NaN equals NaN, and floats to the last bit


@dataclass(frozen=True)
class Networks(Problem):
    """`Network`, whose parameters are of two kinds."""

    name: ClassVar[str] = "networks"

    def sample(self, n, generator, device=None):
        return Network(n, seed=int(torch.randint(1000, (), generator=generator)))


class TestLearning:
    @pytest.mark.parametrize(
        ("name", "second_derivatives"), [*((name, False) for name in RULES), ("groups", True), ("memory", True)]
    )
    def test_every_kind_of_rule_lowers_the_loss(self, name, second_derivatives):
        rule = RULES[name]().double()
        before = copied(rule)
        settings = replace(SETTINGS, horizon=8, epochs=2, episodes_per_epoch=15, batch_size=8, meta_lr=0.03)
        settings = replace(settings, validation_tasks=32, second_derivatives=second_derivatives)
        history = meta_train(rule, Networks(), settings, device="cpu", progress=False)
        assert history.stopped == "finished"
        assert history.best.validation_loss < 0.9 * history.records[0].validation_loss
        same = {weight for weight, value in rule.state_dict().items() if torch.equal(value, before[weight])}
        assert not same - ({"output.bias"} if "odd" in name else set())  # it cancels in an odd rule
        assert all(weight.grad is None for weight in rule.parameters())

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_every_problem_can_be_trained_on(self, problem):
        rule = make_optimizer(preprocessing="log-sign", output_scale=0.1)
        small = replace(SETTINGS, epochs=1, batch_size=2, validation_tasks=2)
        history = meta_train(rule, PROBLEMS[problem], small, device="cpu", progress=False)
        assert history.problem == PROBLEMS[problem].config()
        losses = rollout(rule, validation_batch(PROBLEMS[problem], small), small.horizon)
        assert history.best.validation_loss == pytest.approx(losses[:, -1].mean().item(), rel=1e-5)

    def test_events_tell_where_the_run_stands(self):
        events = list(make_trainer().run())
        assert [event.epoch for event in events] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert [event.episode for event in events] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
        validated = [event for event in events if event.validation_losses is not None]
        assert [event.epoch for event in validated] == [0, 1, 2, 3]
        assert all(event.validation_losses.shape == (7, 7) for event in validated)
        assert math.isnan(events[0].training_loss)
        assert events[3].training_loss == pytest.approx((events[1].training_loss + events[2].training_loss) / 2)

    def test_ends_with_the_best_weights_by_validation(self):
        trainer, kept = make_trainer(**RUNS["best in between"]), {}
        for event in trainer.run():
            if event.validation_losses is not None:
                kept[event.epoch] = copied(trainer.rule)
        losses = [record.validation_loss for record in trainer.history.records]
        best = trainer.history.best.epoch
        assert best == losses.index(min(losses)) < 3, "the run must get worse at its end for this test to tell"
        assert same_weights(trainer.rule, kept[best])
        trained = trainer.history.about()["trained"]
        assert (trained["best_epoch"], trained["validation_loss"]) == (best, min(losses))

    @pytest.mark.parametrize("patience", [1, 2, 3])
    def test_ends_early_once_patience_is_over(self, patience, tmp_path):
        """Also if it is continued after that, or if the last epochs were taken with more patience."""
        changes = {**RUNS["best in between"], "epochs": 12}
        losses = [record.validation_loss for record in finish(make_trainer(**changes)).history.records]
        wanted = next(
            number
            for number in range(1, 13)
            if number == 12 or number - losses.index(min(losses[: number + 1])) >= patience
        )
        assert wanted < 12, "the run must get worse for this test to tell"
        trainer = finish(make_trainer(tmp_path / "run", **changes, patience=patience))
        assert [record.validation_loss for record in trainer.history.records] == losses[: wanted + 1]
        assert trainer.history.stopped == "finished"
        again = make_trainer(tmp_path / "run", **changes, patience=patience)
        assert list(again.run()) == []
        assert_same_bits(outcome(again), outcome(trainer))

    @pytest.mark.parametrize("drop", [False, True])
    def test_cancelling_keeps_the_best_weights(self, drop):
        """Whether the generator is closed, or dropped as by a widget that is closed in the middle of a run."""
        trainer = make_trainer()
        events = trainer.run()
        next(events)
        initial = copied(trainer.rule)
        next(events)
        assert not same_weights(trainer.rule, initial)
        if not drop:
            events.close()
        del events
        gc.collect()
        assert trainer.history.stopped == "cancelled"
        assert same_weights(trainer.rule, initial)
        with pytest.raises(RuntimeError, match="runs once"):
            next(trainer.run())

    @pytest.mark.parametrize(
        ("call", "records", "words"),
        [
            (0, 0, "is as it was"),  # while the tasks of the validation are drawn
            (4, 2, "holds the best weights so far: epoch 1's"),
        ],
    )
    def test_ctrl_c_ends_the_training_and_keeps_the_best(self, capsys, call, records, words):
        calls = itertools.count()

        class Interrupted(Quadratics):
            def sample(self, num_tasks, generator, device=None):
                if next(calls) == call:
                    raise KeyboardInterrupt
                return super().sample(num_tasks, generator, device)

        history = meta_train(make_optimizer(), Interrupted(dim=2), SETTINGS, progress=False, device="cpu")
        assert history.stopped == "cancelled"
        assert capsys.readouterr().err == f"Meta-training was stopped. The rule {words}.\n"
        whole = finish(make_trainer()).history.records[:records]
        assert [record.validation_loss for record in history.records] == [one.validation_loss for one in whole]

    def test_settings_that_do_not_suit_the_rule_end_it(self):
        trainer = make_trainer(optimizer=LSTMRule(4, global_averaging_cells=1), sample=1)
        with pytest.raises(ValueError, match="coordinate"):
            next(trainer.run())
        assert trainer.history.stopped == "cancelled"


class TestBits:
    @every_run
    def test_same_seed_same_bits(self, changes, tmp_path):
        """With a checkpoint and without; and a finished run is not run again."""
        torch.manual_seed(1)
        first = outcome(finish(make_trainer(**changes)))
        before = torch.manual_seed(2).get_state()
        assert_same_bits(outcome(finish(make_trainer(tmp_path / "run", **changes))), first)
        again = make_trainer(tmp_path / "run", **changes)
        assert list(again.run()) == []
        assert_same_bits(outcome(again), first)
        assert torch.equal(torch.get_rng_state(), before), "the global generator is not the kit's to use"
        other = outcome(finish(make_trainer(**{**changes, "seed": 7})))
        assert not torch.equal(first[0]["output.weight"], other[0]["output.weight"])

    def test_every_episode_and_the_validation_meet_other_tasks(self, monkeypatch):
        starts, sample = [], Quadratics.sample
        monkeypatch.setattr(Quadratics, "sample", lambda *given: starts.append(sample(*given)) or starts[-1])
        finish(make_trainer())
        assert [len(tasks.theta) for tasks in starts] == [7, *[5] * 6]
        numbers = torch.cat([tasks.theta for tasks in starts]).flatten()
        assert len(numbers.unique()) == len(numbers)

    @pytest.mark.parametrize("kill_after", [0, 1, 3, 4, 6, EVENTS])
    @every_run
    def test_a_killed_run_continues_with_the_same_bits(self, tmp_path, changes, kill_after):
        """The killed run's generator is neither finished nor closed before the next one begins."""
        whole, path = make_trainer(tmp_path / "whole", **changes), tmp_path / "killed"
        killed = make_trainer(path, **changes).run()
        list(itertools.islice(killed, kill_after))
        resumed = make_trainer(path, **changes)
        assert_same_bits(outcome(finish(resumed)), outcome(finish(whole)))
        assert_same_bits(checkpointed(path), checkpointed(tmp_path / "whole"))
        assert resumed.history.stopped == "finished"
        assert resumed.seconds >= resumed.history.records[-1].seconds > 0
        del killed

    def test_a_problem_whose_configuration_holds_a_tuple_can_be_resumed(self, tmp_path):
        """JSON knows no tuples; a checkpoint must not take its own run for another."""
        finish(make_trainer(tmp_path / "run", problem=PROBLEMS["mnist"]))
        assert list(make_trainer(tmp_path / "run", problem=PROBLEMS["mnist"]).run()) == []


def breaking(number, at, value):
    """Quadratics of which sample `number` breaks at step `at`: its losses, or the gradients alone."""
    calls = itertools.count()

    class Tasks(QuadraticTasks):
        def losses(self, params, step=0):
            losses = super().losses(params)
            if step != at:
                return losses
            if value == "gradient":  # √0, whose derivative is infinite
                return losses + (params["theta"] - params["theta"].detach()).abs().sqrt().sum(dim=1)
            return losses * value

    class Breaking(Quadratics):
        def sample(self, n, generator, device=None):
            tasks = super().sample(n, generator, device)
            return Tasks(tasks.W, tasks.y, tasks.theta) if next(calls) == number else tasks

    return Breaking(dim=2)


class TestDivergence:
    @pytest.mark.parametrize(("value", "step"), [(math.nan, 1), (math.inf, 4), (math.nan, 5), (math.inf, 6)])
    @both_orders
    def test_is_named_and_the_best_weights_are_kept(self, tmp_path, step, value, second_derivatives):
        """Validation draws sample 0, so sample 4 is episode 3, the second of epoch 2."""
        path = tmp_path / "run"
        trainer = make_trainer(path, breaking(4, step, value), second_derivatives=second_derivatives)
        with pytest.raises(MetaTrainingDivergedError) as caught:
            finish(trainer)
        assert f"loss became {value} at step {step} of episode 3 (epoch 2, meta_lr 0.01)" in str(caught.value)
        assert f"those of epoch {trainer.history.best.epoch}. A lower meta_lr usually helps." in str(caught.value)
        assert trainer.history.stopped == "diverged"
        tensors, about = checkpointed(path)
        assert [record["epoch"] for record in about["history"]] == [0, 1]
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert same_weights(trainer.rule, {name.removeprefix("best."): tensor for name, tensor in tensors.items()})

    def test_before_the_first_update_it_is_not_the_meta_learning_rate(self):
        """Sample 0 is the validation, sample 1 the first episode; its first window has two steps or more."""
        trainer = make_trainer(problem=breaking(1, 1, math.nan))
        with pytest.raises(
            MetaTrainingDivergedError,
            match="Smaller losses, or a lower output_scale of the rule",
        ):
            finish(trainer)

    @both_orders
    @pytest.mark.parametrize("step", [1, 5, 6])
    def test_of_a_gradient_alone_is_named_too(self, step, second_derivatives):
        """That of the last step is no step's input: it is seen in the meta-gradient."""
        trainer = make_trainer(problem=breaking(4, step, "gradient"), second_derivatives=second_derivatives)
        what = "meta-gradient" if step == 6 else ""
        with pytest.raises(MetaTrainingDivergedError, match=rf"{what} became (nan|inf) at step \d of episode 3"):
            finish(trainer)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_of_the_validation_does_not_win(self, value):
        """Validation tasks that break at the last step: the initial weights stay the best."""
        trainer = finish(make_trainer(problem=breaking(0, 6, value)))
        assert len(trainer.history.records) == 4
        assert trainer.history.best.epoch == 0


class TestSettings:
    @pytest.mark.parametrize(
        ("horizon", "unroll", "windows"), [(6, 4, [4, 2]), (6, 6, [6]), (5, 1, [1] * 5), (7, 3, [3, 3, 1])]
    )
    def test_the_horizon_is_cut_into_windows_and_each_step_counts_once(self, horizon, unroll, windows):
        """The loss of an episode is the mean over all its steps, the shorter last window's too."""
        trainer = make_trainer(horizon=horizon, unroll=unroll, epochs=1, episodes_per_epoch=1, meta_lr=1e-12)
        assert trainer.settings.windows == windows
        history = finish(trainer).history
        tasks = Quadratics(dim=2).sample(5, generator(0, "meta-train", 0))
        expected = rollout(make_optimizer(), tasks, horizon)[:, 1:].mean().item()
        assert history.records[-1].training_loss == pytest.approx(expected, rel=1e-4)
        assert history.about()["trained"]["meta_updates"] == len(windows)

    @pytest.mark.parametrize(
        "wrong",
        [
            *({name: 0} for name in ("horizon", "batch_size", "sample", "meta_lr", "clip_norm")),
            *({"epochs": 2.5}, {"unroll": None}, {"meta_lr": None}, {"clip_norm": math.nan}),
            *({"unroll": 7}, {"shards": 3}, {"sample": 3, "second_derivatives": True}, {"schedule": "linear"}),
        ],
        ids=str,
    )
    def test_what_makes_no_sense_is_refused_by_name(self, wrong):
        with pytest.raises(ValueError, match=f"(meta-training:|unknown) .*{next(iter(wrong))}|unknown schedule"):
            replace(SETTINGS, **wrong)

    @pytest.mark.parametrize("wrong", [(LSTMRule, None), (LSTMRule(4), {"horizon": 3}), ("mnist", None)])
    def test_of_another_type_is_refused_by_name(self, wrong):
        rule, settings = wrong
        with pytest.raises(TypeError, match=r"meta-training: (rule|settings) must be of type .*, got"):
            MetaTrainer(rule, Quadratics(dim=2), settings, device="cpu")

    def test_the_schedule_anneals_to_a_hundredth(self):
        cosine = MetaTraining(epochs=10, episodes_per_epoch=10, meta_lr=0.5)
        rates = [cosine.meta_lr_at(episode) for episode in range(cosine.episodes + 1)]
        assert [rates[0], rates[50], rates[100]] == pytest.approx([0.5, 0.5 * 0.505, 0.005])
        assert rates == sorted(rates, reverse=True)
        assert {replace(cosine, schedule="constant").meta_lr_at(episode) for episode in range(100)} == {0.5}

    @pytest.fixture
    def rates(self):
        """The rates with which Adam moves."""
        return []

    @pytest.fixture
    def steps(self, monkeypatch, rates):
        """The meta-gradients by which Adam moves, as one row each."""
        seen = []

        def step(self, closure=None, original=torch.optim.Adam.step):
            seen.append(torch.cat([weight.grad.flatten() for weight in self.param_groups[0]["params"]]))
            rates.append(self.param_groups[0]["lr"])
            return original(self)

        monkeypatch.setattr(torch.optim.Adam, "step", step)
        return seen

    def test_adam_moves_with_the_rate_of_the_schedule(self, steps, rates):
        trainer = finish(make_trainer(schedule="cosine"))
        assert rates == [trainer.settings.meta_lr_at(episode) for episode in range(6) for _ in range(2)]
        assert len(steps) == 12
        assert len(set(rates)) == 6

    def test_the_meta_gradient_is_clipped_to_the_norm(self, steps):
        finish(make_trainer(clip_norm=0.01))
        assert [step.norm().item() for step in steps] == pytest.approx([0.01] * 12, rel=1e-3)
        steps.clear()
        finish(make_trainer(clip_norm=None))
        assert min(step.norm() for step in steps) > 0.02

    def test_the_meta_gradient_is_the_mean_of_the_shards(self, steps):
        finish(make_trainer(shards=2, batch_size=8, unroll=6, clip_norm=None))
        optimizer, rows = make_optimizer(), []
        for shard in range(2):
            estimator = FirstOrderEstimator(optimizer)
            estimator.reset(Quadratics(dim=2).sample(4, generator(0, "meta-train", 0, shard)))
            found = estimator.unroll(6).meta_gradient
            rows.append(torch.cat([found[name].flatten() for name, _ in optimizer.named_parameters()]))
        torch.testing.assert_close(steps[0], torch.stack(rows).mean(dim=0))


class TestCheckpointsThatAreRefused:
    @pytest.fixture
    def path(self, tmp_path):
        finish(make_trainer(tmp_path / "run", epochs=1))
        return tmp_path / "run"

    def refused(self, path, *messages, **changes):
        optimizer = changes.setdefault("optimizer", make_optimizer())
        before, content = copied(optimizer), path.read_bytes()
        with pytest.raises(WeightsFileError) as caught:
            make_trainer(path, **{"epochs": 1, **changes})
        for message in (str(path), *messages):
            assert message in str(caught.value)
        assert path.read_bytes() == content, "a file that is refused is left alone"
        return same_weights(optimizer, before)

    def rewritten(self, path, change):
        tensors, about = storage.read_tensors(path, 1)
        change(tensors, about)
        storage.write_tensors(path, tensors, about, version=1)

    def test_one_that_lacks_weights(self, path):
        self.rewritten(path, lambda tensors, _: tensors.pop("best.layers.0.bias"))
        self.refused(path, "layers.0.bias (expected", "found nothing")

    @pytest.mark.parametrize("name", [field.name for field in fields(MetaTraining)])
    def test_one_with_another_setting(self, path, name):
        other = {"schedule": "constant", "clip_norm": None, "second_derivatives": True, "meta_lr": 0.02, "shards": 5}
        value = other.get(name, getattr(SETTINGS, name) - 1 if name == "unroll" else 8)
        self.refused(path, "checkpoint of another run", f"settings had {name} ", repr(value), **{name: value})

    def test_one_in_another_precision(self, path):
        self.refused(path, "another precision", "float32", "float64", optimizer=make_optimizer().double())

    def test_one_of_a_run_that_began_with_other_weights(self, path):
        """Such as those of a pretrained optimizer: going on from it would throw them away."""
        other = make_optimizer()
        other.output.bias.data += 1
        self.refused(path, "a checkpoint of a run that began with other weights", optimizer=other)
        left = finish(make_trainer(path, epochs=1)).rule
        make_trainer(path, epochs=1, optimizer=left)  # as in a notebook, after an interruption

    def test_one_with_a_setting_that_no_longer_exists_only_where_it_was_used(self, path):
        self.rewritten(path, lambda _, about: about["settings"].update(gone=None))
        assert list(make_trainer(path, epochs=1).run()) == []
        self.rewritten(path, lambda _, about: about["settings"].update(gone=4))
        self.refused(path, "gone 4")

    def test_one_of_another_problem_or_rule(self, path):
        assert self.refused(path, "problem had dim 2 (now 3)", problem=Quadratics(dim=3))
        assert self.refused(path, "optimizer had seed 0 (now 1)", optimizer=make_optimizer(seed=1))


def test_a_history_says_what_was_done():
    history = finish(make_trainer()).history
    about = history.about()
    assert json.loads(json.dumps(about, allow_nan=False)) == about
    assert about["problem"] == {"name": "quadratics", "dim": 2}
    assert about["training"] == asdict(SETTINGS)
    trained = about["trained"]
    assert (trained["episodes"], trained["meta_updates"], trained["stopped"]) == (6, 12, "finished")
    frame = history.to_frame()
    assert list(frame.index) == [0, 1, 2, 3]
    assert list(frame["validation_loss"]) == [record.validation_loss for record in history.records]
    losses = (math.nan, 3.0, math.inf, 2.0)  # of which the best one passes over NaN
    records = [record._replace(validation_loss=loss) for record, loss in zip(history.records, losses, strict=True)]
    assert History({}, SETTINGS, "cpu", records).best.epoch == 3


@pytest.mark.parametrize("settings", [{}, 0, SETTINGS.__dict__])
def test_settings_of_another_type_are_refused(settings):
    with pytest.raises(TypeError, match="settings must be of type MetaTraining, got "):
        meta_train(make_optimizer(), Quadratics(dim=2), settings, device="cpu", progress=False)


def test_a_rule_of_which_a_part_is_frozen_is_refused():
    """It would be trained all the same."""
    rule = make_optimizer()
    rule.output.requires_grad_(False)
    with pytest.raises(ValueError, match=r"all weights of a rule are trained.*output\.weight, output\.bias"):
        make_trainer(optimizer=rule)


def test_the_progress_bar_shows_the_losses_of_the_episodes_that_it_counts(monkeypatch, capsys):
    shown = partial(tqdm, mininterval=0, ncols=100)
    monkeypatch.setattr("l2l_kit.training.meta_training.tqdm", shown)
    meta_train(make_optimizer(), Quadratics(dim=2), SETTINGS, device="cpu")
    text = capsys.readouterr().err
    assert "nan" not in text
    losses = [event.training_loss for event in make_trainer().run() if event.validation_losses is None]
    for number, loss in enumerate(losses, 1):
        first = next(line for line in text.split("\r") if f" {number}/{len(losses)} " in line)
        assert f"loss={loss:.3g}," in first
