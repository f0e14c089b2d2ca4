"""Small modules that methods train beside a tower: of class rows, of scores, of masks."""
