"""The `xla` backend: plain JAX scans, on every platform."""
