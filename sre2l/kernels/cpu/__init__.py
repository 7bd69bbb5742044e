"""C kernels for a CPU, and the Python that calls them."""
