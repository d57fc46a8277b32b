"""Scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from l2l_kit.extras import needs

Log = Callable[[int, Mapping[str, float]], None]  # writes scalars, by name, of an episode


@contextmanager
def scalar_log(folder: Path | None, first: int) -> Iterator[Log]:
    """Log to a folder what TensorBoard shows; None logs nothing.

    Args:
        first: episode that is logged first. What an earlier run in the same folder logged of it and of later ones is
            replaced.

    Raises:
        ImportError: if tensorboard is not installed.
    """
    if folder is None:
        yield lambda episode, scalars: None
        return
    with needs("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=first) as writer:

        def write(episode: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, episode)
            writer.flush()  # a kill loses nothing of what a checkpoint has

        yield write
