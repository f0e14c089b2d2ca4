"""Formats of class lists, recognised by their content; docs/class_lists.md shows each."""
