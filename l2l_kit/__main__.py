"""The command ``l2l``; ``python -m l2l_kit`` is for those who start it from elsewhere, such as torchrun."""

from __future__ import annotations

import sys

from l2l_kit.extras import needs


def main() -> None:
    """Run a command; without the packages of the command line, say how to install them."""
    try:
        with needs("lessons"):
            from l2l_kit.cli import app
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
