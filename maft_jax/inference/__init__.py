"""From images, masks and names to class probabilities, label maps and pictures."""
