"""Records of examples with proposals: schema, shards, reading by index, verification."""
