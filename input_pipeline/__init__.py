"""Reading, checking, augmenting and batching of images, label maps and mask proposals."""
