"""Packages that an extra of the kit brings: meta-training and `LearnedOptimizer` do without them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["needs", "pd", "stats"]


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


class _Later(ModuleType):
    """A module of the extra "lessons" that is imported when something of it is first used: a bare install lacks it."""

    def __getattr__(self, name: str) -> Any:
        with needs("lessons"):
            return getattr(importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import pandas as pd
    from scipy import stats
else:
    pd, stats = _Later("pandas"), _Later("scipy.stats")
