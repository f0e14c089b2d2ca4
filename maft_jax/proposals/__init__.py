"""Mask proposals: generators, and the cache that computes each image's proposals once."""
