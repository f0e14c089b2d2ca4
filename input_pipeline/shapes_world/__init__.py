"""Shapes world: pictures of patterned shapes, drawn on the spot, in which MAFT is seen to work."""
