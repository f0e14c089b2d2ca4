"""Evaluation: exact counts, metrics, results as files and tables; alone or in training."""
