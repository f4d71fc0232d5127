"""The primitive under every loss, once for each way to run it: torch operations, Triton kernels."""
