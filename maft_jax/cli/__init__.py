"""Commands: flags in, one library call, a file or a message out."""
