"""Weights that lie elsewhere: their names, and how they come to this machine."""
