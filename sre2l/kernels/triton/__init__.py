"""Triton kernels for a GPU. Import these modules only where Triton is installed."""
