"""What two or more stages need, in five wings: run, kernels, data, check and nets."""
