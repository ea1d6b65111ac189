"""Small C++ operators, each beside its PyTorch reference and behind one choice there.

An operator is a plain C interface without dependencies, compiled at its first use with the machine's C++ compiler
(`build.py`, a few seconds, kept in the user's cache folder) and called with addresses. Where it cannot be had (another
processor, no compiler, OPENBOOK_NATIVE=0) its loader answers None, says why once, and the reference does the work.

    attention    attention.cpp, tiles.h, visible.h: fused attention over bf16, forward and backward; chosen in nn/attend.py
"""
