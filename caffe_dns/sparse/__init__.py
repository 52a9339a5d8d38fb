"""Pruned nets that leave out what is zero: on a CPU as compiled programs, on a GPU in 2:4.

Read in this order: `kernels.on_cpu.vectors` (what is written for LLVM), `kernels` (compiled by
numba), `tables` (what they read), `operations` (what each type of layer adds to it), `program` (a
row of layers, made and run); `semi_structured` (the GPU's); `plan` (which layers of a net run so:
those that are faster for it).
"""
