"""Tuned weights for others: a model card, and a repository of the Hugging Face hub."""
