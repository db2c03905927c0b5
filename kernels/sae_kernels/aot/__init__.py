"""Compile every Triton kernel for named GPUs, without such a GPU: `python -m sae_kernels.aot`.

cases.py lists ops and sizes, compile.py compiles and reads the machine code, model.py counts bytes and operations, and
check.py reports what is wrong with the code.
"""
