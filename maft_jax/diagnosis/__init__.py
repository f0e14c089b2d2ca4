"""What fine-tuning changes in CLIP: class scores against IoU, their diversity, false positives."""
