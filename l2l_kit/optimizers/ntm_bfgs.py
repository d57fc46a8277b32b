"""A learned optimizer with a memory that all coordinates share (appendix of the paper's first version).

BFGS moves by a matrix M, its estimate of the inverse Hessian, times the gradient, and adds a few outer products to M at
each step. NTM-BFGS keeps that and learns the rest (arXiv:1606.04474v1): an LSTM with global averaging cells, run on
every coordinate, says what is multiplied by the memory and what is added to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.errors import check_counts
from l2l_kit.optimizers.lstm import LSTMState, RecurrentRule
from l2l_kit.optimizers.preprocessing import Preprocessing


class NTMState(NamedTuple):
    """What is remembered of each coordinate; ``...`` is the shape of the gradients.

    Attributes:
        hidden, cell: of the LSTM, see `LSTMState`.
        read: results of the last reading, shape ``(read_heads, ...)``.
        left, right: the vectors whose outer products make up the memory, newest last, shape ``(vectors, ...)``.
    """

    hidden: Tensor
    cell: Tensor
    read: Tensor
    left: Tensor
    right: Tensor

    @property
    def memory(self) -> Tensor:
        """The matrix M, which no step needs, shape ``(..., coordinates, coordinates)``."""
        coordinates = self.left.shape[-1]
        written = torch.einsum("w...i,w...j->...ij", self.left, self.right)
        return torch.eye(coordinates).to(written) + written / coordinates


class NTMBFGS(RecurrentRule[NTMState]):
    """An LSTM whose coordinates share a memory M, a matrix of coordinates by coordinates as in BFGS.

    At each step the LSTM gives every coordinate its update and its entries of some vectors. A read head multiplies its
    vector by the memory, M x, and each coordinate is shown its entry of the product at the next step. Then a write head
    adds the outer product of its two, a bᵀ. M begins as the identity, as in BFGS, and is never formed: it gives
    M x = x + Σ a (b·x) / coordinates, with a mean in place of the inner product, whose size does not depend on how many
    coordinates there are.

    Args:
        hidden_size, num_layers, preprocessing, output_scale, forget_bias, seed: as in `LSTMRule`.
        global_averaging_cells: as in `LSTMRule`; two of them, one read head and three write heads are enough to do
            what BFGS does, says the paper, for a network that can compute any function of its coordinate.
        read_heads: vectors that are multiplied at each step.
        write_heads: outer products that are added at each step.
        history: steps whose outer products are kept; older ones are forgotten, as in L-BFGS (the paper's NTM-L-BFGS).

    Raises:
        UnknownNameError: for an unknown preprocessing.
        ValueError: for sizes below 1, or as `LSTMRule`.
    """

    kind: ClassVar[str] = "ntm-bfgs"

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        preprocessing: str | Preprocessing | Mapping[str, Any] = "none",
        output_scale: float = 1.0,
        forget_bias: float = 0.0,
        global_averaging_cells: int = 2,
        read_heads: int = 1,
        write_heads: int = 3,
        history: int = 100,
        seed: int = 0,
    ) -> None:
        check_counts("NTMBFGS", read_heads=read_heads, write_heads=write_heads, history=history)
        super().__init__(
            hidden_size,
            num_layers,
            preprocessing,
            output_scale,
            forget_bias,
            global_averaging_cells,
            seed,
            more_inputs=read_heads,
            outputs=1 + read_heads + 2 * write_heads,
        )
        self.read_heads = read_heads
        self.write_heads = write_heads
        self.history = history

    @override
    def config(self) -> dict[str, Any]:
        heads = {"read_heads": self.read_heads, "write_heads": self.write_heads, "history": self.history}
        return {**super().config(), "global_averaging_cells": self.global_averaging_cells, **heads}

    @property
    @override
    def coordinatewise(self) -> bool:
        return False

    @override
    def initial_state(self, *shape: int) -> NTMState:
        new = self.output.weight.new_zeros
        cells = new(self.num_layers, self.hidden_size, *shape)
        nothing = new(0, *shape)
        return NTMState(cells, cells.clone(), new(self.read_heads, *shape), nothing, nothing.clone())

    @override
    def forward(self, gradients: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        inputs = torch.cat([self.preprocessing(gradients), state.read])
        outputs, lstm = self._run(inputs, LSTMState(state.hidden, state.cell))
        sizes = [1, self.read_heads, self.write_heads, self.write_heads]
        update, vectors, left, right = outputs.split_with_sizes(sizes)
        read = _multiplied(state.left, state.right, vectors)
        kept = self.history * self.write_heads
        left, right = torch.cat([state.left, left])[-kept:], torch.cat([state.right, right])[-kept:]
        return self.output_scale * update[0], NTMState(*lstm, read, left, right)


def _multiplied(left: Tensor, right: Tensor, vectors: Tensor) -> Tensor:
    """The memory times vectors ``(heads, ..., coordinates)``."""
    products = (right[:, None] * vectors).mean(dim=-1, keepdim=True)
    return vectors + (left[:, None] * products).sum(dim=0)
