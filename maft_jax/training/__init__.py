"""A training run: what is set up, what a step minimises, and the loop over steps."""
