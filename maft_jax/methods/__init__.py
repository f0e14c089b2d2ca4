"""Ways to teach CLIP masks beside MAFT's, whose objective is training.clip_objective."""
