"""LearnedOptimizer where parameters or their states are shared out over two processes; Adam is the control."""

import copy
import json

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
from workers import finish, start

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


def fully_sharded(make, options, rank):
    model, optimizer = sharded(make, options)
    train(model, optimizer, range(6), rank)
    return close(weights(model), weights(alone(make, options)[0]))


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
    again = network()
    last = make(again.parameters(), **options)
    checkpoint.set_state_dict(again, last, model_state_dict=after[0], optim_state_dict=after[1], options=full)
    train(again, last, range(6, 9))
    both = close(weights(model), weights(one))
    train(one, optimizer, range(6, 9))
    shapes = [
        [values.shape for each in some[1]["state"].values() for values in each.values()] for some in (saved, after)
    ]
    return both and close(weights(again), weights(one)) and shapes[0] == shapes[1]


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


LAWS = {
    **{
        (law.__name__, optimizer): law
        for optimizer in ("Adam", "mnist", "bfloat16 state")
        for law in (
            distributed_data_parallel,
            zero_redundancy,
            fully_sharded,
            fully_sharded_checkpoint,
            tensor_parallel,
        )
    },
    ("distributed_data_parallel", "averaging"): distributed_data_parallel,
    ("refused", "averaging"): refused,
}


def main(rank, folder):
    """What each law says on this process: whether it holds, or the error."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for (law, name), holds in LAWS.items():
        try:
            found[f"{law}, {name}"] = holds(*OPTIMIZERS[name], rank)
        except Exception as error:
            found[f"{law}, {name}"] = f"{type(error).__name__}: {error}"
    (folder / f"found{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Both processes, started once for all laws."""
    folder = tmp_path_factory.mktemp("processes")
    started = [start(folder / "log", main, rank, folder) for rank in range(2)]
    for process in started:
        finish(process, folder / "log")
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("law", [f"{law}, {name}" for law, name in LAWS])
def test_law_holds_on_two_processes(found, law):
    assert [one[law] for one in found] == [True, True]
