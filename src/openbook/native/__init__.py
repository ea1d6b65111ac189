"""Small C++ operators, each beside its PyTorch reference and behind one choice there.

An operator is a plain C interface without dependencies, compiled at its first use with the machine's C++ compiler
(`build.py`, a few seconds, kept in the user's cache folder) and called with addresses. Where it cannot be had (another
processor, no compiler, OPENBOOK_NATIVE=0) its loader answers None, says why once, and the reference does the work.

    rows         products with fp32, bf16 and int8 matrices, norms, activations and whole blocks in which a row's result
                 depends on that row alone; chosen in nn/rows.py, nn/packed.py and nn/served.py
    scan         recurrences: of state spaces, forward and backward, and the delta rule; chosen in nn/scan.py,
                 nn/delta.py and nn/structured.py
    attention    fused attention over bf16, forward and backward (AMX or AVX-512 BF16); chosen in nn/attend.py
    paged        attention over pages of keys and values (AMX, AVX-512 BF16 or any vectors); chosen in nn/paged.py
"""
