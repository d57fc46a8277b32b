"""Packages that an extra of the kit brings: meta-training and `LearnedOptimizer` do without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import packages of an extra; if one is missing, the error says how to install it.

    >>> with needs("lessons"):
    ...     import pandas as pd

    Raises:
        ImportError: if a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise ImportError(
            f"{package} is not installed, which this needs: pip install 'l2l_kit[{extra}]'", name=error.name
        ) from error
