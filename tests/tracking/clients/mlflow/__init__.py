"""What MlflowRun uses of mlflow, with the signatures of 3.17, kept in memory as a store would."""

stores = {}
"""By their addresses."""
