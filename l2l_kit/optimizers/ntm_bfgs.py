"""A rule with a memory that all coordinates share (the paper's first version, arXiv:1606.04474v1).

BFGS moves by a matrix M, its estimate of the inverse Hessian, times the gradient, and adds a few outer products to M at
each step. NTM-BFGS keeps that scheme; an LSTM with global averaging cells chooses the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from l2l_kit.errors import Count
from l2l_kit.optimizers.base import Memory
from l2l_kit.optimizers.lstm import LSTMRule
from l2l_kit.optimizers.preprocessing import Preprocessing


class NTMState(NamedTuple):
    """The memory of the coordinates; ``...`` is the shape of the gradients."""

    hidden: Tensor  # as in `LSTMState`
    cell: Tensor
    read: Tensor  # results of the last reading, ``(read_heads, ...)``
    left: Tensor  # the vectors of the outer products in M, newest last, ``(vectors, ...)``
    right: Tensor

    @property
    def memory(self) -> Tensor:
        """The matrix M, shape ``(..., coordinates, coordinates)``, to look at; no step forms it."""
        coordinates = self.left.shape[-1]
        written = torch.einsum("w...i,w...j->...ij", self.left, self.right)
        return torch.eye(coordinates).to(written) + written / coordinates


class NTMBFGS(LSTMRule):
    """An LSTM whose coordinates share a memory M, a matrix of coordinates by coordinates as in BFGS.

    At each step the LSTM gives every coordinate its update and its entries of some vectors. A read head multiplies its
    vector x by the memory, and the next step shows each coordinate its entry of M x. Then a write head adds the outer
    product a bᵀ of its two vectors. M starts as the identity, as in BFGS. It is never formed, because
    M x = x + Σ a (b·x) / coordinates; dividing by the number of coordinates keeps the size independent of it.

    Arguments are those of `LSTMRule`, and `read_heads`, `write_heads` and `history`, the number of steps whose outer
    products are kept, as in L-BFGS (the paper's NTM-L-BFGS). By default there are as many as can do what BFGS does.
    """

    kind = "ntm-bfgs"

    read_heads: Count
    write_heads: Count
    history: Count

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        preprocessing: str | Preprocessing | Mapping[str, object] = "none",
        output_scale: float = 1.0,
        forget_bias: float = 0.0,
        global_averaging_cells: int = 2,
        read_heads: int = 1,
        write_heads: int = 3,
        history: int = 100,
        seed: int = 0,
    ) -> None:
        self.read_heads, self.write_heads, self.history = read_heads, write_heads, history  # where they are checked
        lstm = hidden_size, num_layers, preprocessing, output_scale, forget_bias, global_averaging_cells, seed
        super().__init__(*lstm, more_inputs=read_heads, outputs=1 + read_heads + 2 * write_heads)

    def config(self) -> dict[str, object]:
        heads = {"read_heads": self.read_heads, "write_heads": self.write_heads, "history": self.history}
        return {**super().config(), "global_averaging_cells": self.global_averaging_cells, **heads}

    @property
    def coordinatewise(self) -> bool:
        return False

    def initial_state(self, *shape: int) -> NTMState:
        (hidden, cell), new = super().initial_state(*shape), self.output.weight.new_zeros
        return NTMState(hidden, cell, new(self.read_heads, *shape), new(0, *shape), new(0, *shape))

    def forward(self, gradients: Tensor, state: Memory) -> tuple[Tensor, NTMState]:
        hidden, cell, read, left, right = state
        outputs, lstm = self._run(torch.cat([self.preprocessing(gradients), read]), hidden, cell)
        sizes = [1, self.read_heads, self.write_heads, self.write_heads]
        update, vectors, *written = outputs.split_with_sizes(sizes)
        products = (right[:, None] * vectors).mean(dim=-1, keepdim=True)
        read = vectors + (left[:, None] * products).sum(dim=0)  # M x of every read head
        kept = self.history * self.write_heads
        left, right = (torch.cat(vectors)[-kept:] for vectors in zip((left, right), written, strict=True))
        return self.output_scale * update[0], NTMState(*lstm, read, left, right)
