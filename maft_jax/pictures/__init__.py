"""What people look at: overlays with legends, sheets of training data and of comparisons."""
