"""The state of a run: what training changes, how it is updated, kept and read back."""
