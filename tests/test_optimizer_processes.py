"""LearnedOptimizer where parameters or their states are shared out over two processes; Adam is the control."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict as checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from l2l_kit import LearnedOptimizer

OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "mnist": (LearnedOptimizer, {"rule": "mnist", "lr": 1.0}),
    "bfloat16 state": (LearnedOptimizer, {"rule": "mnist", "state_dtype": torch.bfloat16}),
    "averaging": (LearnedOptimizer, {"rule": "quadratics-averaging"}),
}


def network():
    """Of sizes that two processes cannot share evenly, and with a vector that one of them has nothing of."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def train(model, optimizer, steps, rank=None):
    """On all rows, or on this process's half of them."""
    for step in steps:
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        targets = inputs.sum(dim=1, keepdim=True)
        half = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
        optimizer.zero_grad()
        (model(inputs[half]) - targets[half]).square().mean().backward()
        optimizer.step()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def weights(model):
    return [whole(param.detach()).clone() for param in model.parameters()]


def alone(make, options, steps=6):
    model = network()
    optimizer = make(model.parameters(), **options)
    train(model, optimizer, range(steps))
    return model, optimizer


def close(found, expected):
    """To the rounding of gradients that were added up in another order, which a recurrence carries on."""
    return all(torch.allclose(one, other, rtol=1e-2, atol=1e-3) for one, other in zip(found, expected, strict=True))


def distributed_data_parallel(make, options, rank):
    model = DistributedDataParallel(network())
    train(model, make(model.parameters(), **options), range(6), rank)
    return close(weights(model), weights(alone(make, options)[0]))


def zero_redundancy(make, options, rank):
    """Half of the state on each process; it is brought together, and goes on in another one."""
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), make, **options)
    train(model, optimizer, range(3), rank)
    optimizer.consolidate_state_dict(to=0)
    states = [optimizer.state_dict() if rank == 0 else None]
    dist.broadcast_object_list(states)
    again = ZeroRedundancyOptimizer(model.parameters(), make, **options)
    again.load_state_dict(states[0])
    train(model, again, range(3, 6), rank)
    return close(weights(model), weights(alone(make, options)[0]))


def sharded(make, options):
    model = network()
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    return model, make(model.parameters(), **options)


def fully_sharded_checkpoint(make, options, rank):
    """A whole state that one process saved, continued by two, and the other way round."""
    one, optimizer = alone(make, options, steps=3)
    full = checkpoint.StateDictOptions(full_state_dict=True)
    saved = copy.deepcopy(checkpoint.get_state_dict(one, optimizer, options=full))  # Adam's would be shared
    model, other = sharded(make, options)
    checkpoint.set_state_dict(model, other, model_state_dict=saved[0], optim_state_dict=saved[1], options=full)
    train(model, other, range(3, 6), rank)
    after = copy.deepcopy(checkpoint.get_state_dict(model, other, options=full))
    train(one, optimizer, range(3, 6))
    both = close(weights(model), weights(one))
    checkpoint.set_state_dict(one, optimizer, model_state_dict=after[0], optim_state_dict=after[1], options=full)
    train(one, optimizer, range(6, 9))
    return both and close(weights(one), weights(alone(make, options, steps=9)[0]))


def tensor_parallel(make, options, rank):
    """A parameter and a gradient that are laid out differently over the processes."""
    mesh = init_device_mesh("cpu", (2,))
    values, gradient = torch.arange(12.0).view(4, 3), torch.linspace(-1, 1, 12).view(4, 3)
    plain, found = nn.Parameter(values.clone()), []
    for placement, other in ((Shard(0), Replicate()), (Shard(1), Shard(0)), (Replicate(), Replicate())):
        param = nn.Parameter(distribute_tensor(values, mesh, [placement]))
        param.grad = distribute_tensor(gradient, mesh, [other])
        make([param], **options).step()
        found.append(whole(param.detach()))
    plain.grad = gradient
    make([plain], **options).step()
    return all(torch.allclose(one, plain.detach()) for one in found)


def refused(make, options, rank):
    try:
        sharded(make, options)
    except ValueError as error:
        return "moves all coordinates together" in str(error)
    return False


EVERY = distributed_data_parallel, zero_redundancy, fully_sharded_checkpoint, tensor_parallel
LAWS = {(law.__name__, name): law for name in ("Adam", "mnist", "bfloat16 state") for law in EVERY}
LAWS |= {(law.__name__, "averaging"): law for law in (distributed_data_parallel, refused)}


def main(rank, folder):
    """What each law says on this process: whether it holds, or the error."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for (law, name), holds in LAWS.items():
        try:
            found[f"{law}, {name}"] = holds(*OPTIMIZERS[name], rank)
        except Exception as error:
            found[f"{law}, {name}"] = f"{type(error).__name__}: {error}"
    Path(folder, f"found{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Both processes, started once for all laws."""
    folder = tmp_path_factory.mktemp("processes")
    tests = Path(__file__).resolve().parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(2)]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=250)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("law", [f"{law}, {name}" for law, name in LAWS])
def test_law_holds_on_two_processes(found, law):
    assert [one[law] for one in found] == [True, True]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
