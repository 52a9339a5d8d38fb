"""Pruned nets on a CPU: rows of layers as one compiled program that leaves out what is zero.

Read in this order: `kernels` (compiled by numba), `program` (from layers to the tables that the
kernels read), `plan` (which layers of a net run so: those that are faster for it). Needs the extra
`sparse`.
"""
