"""A web page around ImageSegmenter: drop a picture, type names, see which pixels they get."""

from maft_jax.web_page.page import make_page, serve_page, temporary_folder

__all__ = ["make_page", "serve_page", "temporary_folder"]
