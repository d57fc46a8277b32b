"""Meta-training on two processes is meta-training on one, to rounding; torchrun starts them as a user would."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import assert_close, same_bits
from workers import finish, start

from l2l_kit import optimizers, zoo
from l2l_kit.problems import Quadratics, QuadraticTasks
from l2l_kit.processes import process_group
from l2l_kit.training import MetaTrainer, MetaTraining

SETTINGS = {"horizon": 6, "unroll": 3, "epochs": 2, "episodes_per_epoch": 3, "batch_size": 8, "shards": 4}
SETTINGS |= {"validation_tasks": 8, "meta_lr": 0.01}


class Precise(Quadratics):
    """Quadratics in double precision."""

    def sample(self, num_tasks, generator, device=None):
        drawn = super().sample(num_tasks, generator, device)
        return QuadraticTasks(drawn.W.double(), drawn.y.double(), drawn.theta.double())


def make_trainer(checkpoint=None):
    optimizer = optimizers.make({"hidden_size": 5, "output_scale": 0.1}).double()
    return MetaTrainer(optimizer, Precise(dim=2), MetaTraining(**SETTINGS), checkpoint=checkpoint, device="cpu")


def train(rank, port, folder):
    """What one of two processes does, as torchrun starts it: a run to its end, and one that ends after an epoch."""
    about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in about.items()})
    with process_group("cpu"):
        for epochs in (2, 1):
            trainer = make_trainer(folder / f"{epochs}.safetensors")
            for event in trainer.run():
                if event.validation_losses is not None and len(trainer.history.records) == epochs + 1:
                    break
            torch.save(trainer.rule.state_dict(), folder / f"{epochs} {rank}")


def torchrun(*command):
    """What it prints on two processes."""
    tests = Path(__file__).resolve().parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run([*launcher, *map(str, command)], capture_output=True, text=True, timeout=250, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def alone(checkpoint=None):
    trainer = make_trainer(checkpoint)
    list(trainer.run())
    return trainer.rule.state_dict()


def test_two_processes_learn_what_one_learns_and_one_goes_on_with_what_two_began(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for process in [start(tmp_path / "log", train, rank, port, tmp_path) for rank in range(2)]:
        finish(process, tmp_path / "log")
    first, second = (torch.load(tmp_path / f"2 {rank}") for rank in range(2))
    assert same_bits(first.values(), second.values())
    expected = alone()
    assert_close(first.values(), expected.values(), rtol=1e-9, atol=1e-12)
    found = alone(tmp_path / "1.safetensors")
    assert_close(found.values(), expected.values(), rtol=1e-9, atol=1e-12)


def test_processes_must_divide_the_shards(monkeypatch):
    monkeypatch.setattr("l2l_kit.training.meta_training.rank_and_world_size", lambda: (0, 3))
    with pytest.raises(ValueError, match=r"on 3 processes needs shards .* multiple of 3, got 4"):
        make_trainer()


def test_the_command_trains_on_two_processes(tmp_path):
    recipe, training = tmp_path / "tiny.toml", "\n".join(f"{name} = {value}" for name, value in SETTINGS.items())
    recipe.write_text(f'[problem]\nname = "quadratics"\n[optimizer]\nhidden_size = 5\n[training]\n{training}\n')
    printed = torchrun("-m", "l2l_kit", "train", recipe, "--data", tmp_path, "--device", "cpu")
    assert printed.count("after 6 episodes") == 1
    assert zoo.card(tmp_path / "pretrained" / "tiny")["trained"]["episodes"] == 6
