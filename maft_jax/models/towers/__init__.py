"""Image towers, a file each, behind the protocols of models/encoder.py."""
