"""Pruned nets on a CPU: rows of layers as one compiled program that leaves out what is zero.

Read in this order: `kernels` (compiled by numba), `tables` (what they read), `operations` (what
each type of layer adds to it), `program` (a row of layers, made and run), `plan` (which layers of a
net run so: those that are faster for it). Needs the extra `sparse`.
"""
