"""The Triton backend: kernels and their launches. What is launched how is decided in the core.

`Block` is one problem and function on one device; `flexact.fused_moe` and `flexact.moe.plan` use it for
CUDA tensors.
"""
