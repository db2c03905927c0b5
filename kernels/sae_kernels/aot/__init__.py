"""Compile every Triton kernel ahead of time for named GPUs, none of which has to be there: `python -m sae_kernels.aot`.

cases.py lists the ops and sizes, compile.py compiles and reads the machine code, model.py counts bytes and operations,
check.py says what is wrong.
"""
