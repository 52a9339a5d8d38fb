"""Kernels for a CPU, compiled by numba.

Not every machine has it, and to import it takes a second: modules of this folder are imported where
they run, and by nothing that is always imported.
"""
