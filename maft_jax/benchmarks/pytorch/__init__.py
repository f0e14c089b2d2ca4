"""The official method in plain PyTorch: what tests and benchmarks compare with.

Nothing here imports anything else of this package, and only functions import what is here: torch
is an extra.
"""
