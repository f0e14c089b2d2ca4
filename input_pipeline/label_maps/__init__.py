"""Label maps of people's own data, one kind a file; docs/label_maps.md shows their layouts."""
