"""`python -m smalti`, and the command `smalti` itself."""

from __future__ import annotations

import sys


def main() -> None:
    """The command line; an interrupt while it is still being loaded ends it as one later does."""
    try:
        from smalti.cli import main as begin
    except KeyboardInterrupt:
        sys.exit(130)
    begin()


if __name__ == "__main__":
    main()
