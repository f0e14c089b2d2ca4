"""What every command stands on: processes, devices, files, signals, lines for people."""
