"""Measurements: kernels, steps and whole trainings beside other programs, and this machine."""
