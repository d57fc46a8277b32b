"""Meta-training on two processes is meta-training on one, to rounding; torchrun starts them as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from l2l_kit import optimizers, zoo
from l2l_kit.problems import Quadratics, QuadraticTasks
from l2l_kit.randomness import generator
from l2l_kit.training import MetaTrainer, MetaTraining, ReplayUnroller

SETTINGS = {
    "horizon": 6,
    "unroll": 3,
    "epochs": 2,
    "episodes_per_epoch": 3,
    "batch_size": 8,
    "shards": 4,
    "validation_tasks": 8,
    "meta_lr": 0.01,
}
OPTIMIZER = {"hidden_size": 5, "output_scale": 0.1}
TRAIN = """
import json, sys
import torch
from test_processes import make_trainer
from l2l_kit.training.processes import place, together

settings, checkpoint, weights, epochs = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)
with together("cpu"):
    trainer = make_trainer(settings, checkpoint)
    for event in trainer.run():
        if event.validation_losses is not None and len(trainer.history.records) == epochs + 1:
            break
    torch.save(trainer.optimizer.state_dict(), f"{weights}{place()[0]}")
"""


class Precise(Quadratics):
    """Quadratics in double precision."""

    def sample(self, num_tasks, generator, device=None):
        drawn = super().sample(num_tasks, generator, device)
        return QuadraticTasks(drawn.W.double(), drawn.y.double(), drawn.theta.double())


def make_trainer(settings, checkpoint=None):
    optimizer = optimizers.make(OPTIMIZER).double()
    return MetaTrainer(optimizer, Precise(dim=2), MetaTraining(**settings), checkpoint=checkpoint, device="cpu")


def on(processes, tmp_path, name, settings=SETTINGS, epochs=2):
    """Weights that the processes end with, one for each."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [json.dumps(settings), tmp_path / f"{name}.safetensors", tmp_path / name, epochs]
    command = [*launcher, script, *arguments]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=250, env=environment())
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [torch.load(tmp_path / f"{name}{rank}") for rank in range(processes)]


def environment():
    tests = Path(__file__).resolve().parent
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}


def alone(settings=SETTINGS, checkpoint=None):
    trainer = make_trainer(settings, checkpoint)
    for _ in trainer.run():
        pass
    return trainer.optimizer.state_dict()


def assert_close(found, expected):
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-9, atol=1e-12)


def test_two_processes_learn_what_one_learns(tmp_path):
    first, second = on(2, tmp_path, "two")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_close(first, alone())


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    on(2, tmp_path, "moved", epochs=1)
    assert_close(alone(checkpoint=tmp_path / "moved.safetensors"), alone())


def test_the_meta_gradient_is_the_mean_of_the_shards():
    one = {**SETTINGS, "shards": 2, "epochs": 1, "episodes_per_epoch": 1, "clip_norm": None}
    trainer = make_trainer(one)
    unroller = ReplayUnroller(trainer.optimizer)
    found = []
    for shard in range(2):
        unroller.begin(Precise(dim=2).sample(4, generator(0, "meta-train", 0, shard)))
        found.append(unroller.advance(3).meta_gradient["output.weight"])
    seen = []
    step = trainer._meta_optimizer.step
    trainer._meta_optimizer.step = lambda: (seen.append(trainer.optimizer.output.weight.grad.clone()), step())
    list(trainer.run())
    torch.testing.assert_close(seen[0], torch.stack(found).mean(dim=0), rtol=1e-12, atol=0)


def test_shards_must_divide_the_batch():
    with pytest.raises(ValueError, match="batch_size 8 cannot be cut into 3 shards"):
        MetaTraining(**{**SETTINGS, "shards": 3})


def test_processes_must_divide_the_shards(monkeypatch):
    monkeypatch.setattr("l2l_kit.training.meta_training.place", lambda: (0, 3))
    with pytest.raises(ValueError, match=r"on 3 processes needs shards .* multiple of 3, got 4"):
        make_trainer(SETTINGS)


def test_the_command_trains_on_two_processes(tmp_path):
    recipe = tmp_path / "tiny.toml"
    training = "\n".join(f"{name} = {value}" for name, value in SETTINGS.items())
    recipe.write_text(
        f'[problem]\nname = "quadratics"\ndim = 2\n[optimizer]\nhidden_size = 5\n[training]\n{training}\n'
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "l2l_kit", "train"]
    ran = subprocess.run(
        [sys.executable, *command, str(recipe), "--data", str(tmp_path), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=250,
        env=environment(),
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.count("after 6 episodes") == 1
    assert zoo.card(tmp_path / "pretrained" / "tiny")["trained"]["episodes"] == 6
