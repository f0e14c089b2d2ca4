"""What a machine has; the standard library alone finds it, since the installation may be broken."""
