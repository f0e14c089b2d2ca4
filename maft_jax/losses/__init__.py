"""The two losses of MAFT: mask-aware and self-distillation."""
