"""The method at work in shapes world: a tiny CLIP, its fine-tuning, the study of both."""
