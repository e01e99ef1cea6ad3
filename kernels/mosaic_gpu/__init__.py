"""The `mosaic_gpu` backend: Pallas kernels for Hopper GPUs."""
