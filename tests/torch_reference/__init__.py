"""MAFT in plain PyTorch, the official way of computing it: an oracle and a benchmark partner."""
