"""The `skip2bench` command, and `python -m skip2bench`."""

import sys


def main() -> None:
    """Load the command line and run it; Ctrl-C while it loads ends it as at any other time."""
    try:
        from skip2bench.cli.app import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
