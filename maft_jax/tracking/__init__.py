"""A run's curves at Weights & Biases or MLflow, beside TensorBoard; see docs/tracking.md."""
