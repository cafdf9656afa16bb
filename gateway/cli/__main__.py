"""`python -m gateway.cli`, for where the `gateway` script is not on the path."""

from gateway.cli import main

main()
