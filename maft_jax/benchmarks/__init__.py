"""Measures what this program does with its own code, and beside it a plain PyTorch rendition."""
