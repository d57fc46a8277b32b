"""``python -m l2l_kit`` is the command ``l2l``, for those who start it from elsewhere, such as torchrun."""

from __future__ import annotations

from l2l_kit.cli import app

app()
