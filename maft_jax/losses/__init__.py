"""Loss terms of arrays: those of MAFT, of CLIP, and of mask generators."""
