"""Repeatable comparisons of the gateway with a bare proxy and with its peers. `python -m benchmarks` runs them; README.md tells how to read them."""
