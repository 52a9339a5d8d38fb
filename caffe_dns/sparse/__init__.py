"""Runs pruned nets without their zeros: on a CPU as compiled programs, on a GPU in 2:4.

Read in this order: `kernels.on_cpu.vectors` (written for LLVM), `kernels` (compiled by numba),
`tables` (what they read), `operations` (what each type of layer adds to it), `program` (makes and
runs a sequence of layers); `semi_structured` (for the GPU); `plan` (which layers of a net run this
way: those that are faster for it).
"""
