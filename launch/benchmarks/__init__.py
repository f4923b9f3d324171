"""The measurements of launch/benchmark.py, one module a kind."""
