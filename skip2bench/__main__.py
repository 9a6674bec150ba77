"""`python -m skip2bench`: the same as the `skip2bench` command."""

from skip2bench.cli import main

main()
