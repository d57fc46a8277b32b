"""l2l_kit: learning to learn by gradient descent by gradient descent (Andrychowicz et al., NIPS 2016)."""

from __future__ import annotations

__version__ = "0.1.0"
