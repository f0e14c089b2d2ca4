"""Shapes world: pictures of named shapes, drawn on the spot, in which MAFT can be seen to work."""
