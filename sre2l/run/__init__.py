"""What every run stands on: flags, errors, logs, whole files, output folders, signals, processes."""
