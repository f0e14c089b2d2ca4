"""Text towers and the tokenizers that they name."""
