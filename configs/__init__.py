"""Experiments: one file each, with get_config(); its docstring is the recipe."""
