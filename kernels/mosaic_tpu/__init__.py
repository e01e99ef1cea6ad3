"""The `mosaic_tpu` backend: Pallas kernels for TPUs."""
