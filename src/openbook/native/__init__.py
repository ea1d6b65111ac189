"""Small C++ operators, each beside its reference (PyTorch, numpy or plain Python) and behind one choice there.

An operator is a plain C interface without dependencies, compiled at its first use with the machine's C++ compiler
(`build.py`, a few seconds, kept in the user's cache folder) and called with addresses. Where it cannot be had (another
processor, no compiler, OPENBOOK_NATIVE=0) its loader answers None, says why once, and the reference does the work.

    rows         products with fp32, bf16 and int8 matrices, norms, activations and whole blocks in which a row's result
                 depends on that row alone; chosen in nn/rows.py, nn/packed.py and nn/served.py
    scan         recurrences: of state spaces, forward and backward, and the delta rule; chosen in nn/scan.py,
                 nn/delta.py and nn/structured.py
    attention    fused attention over bf16, forward and backward (AMX or AVX-512 BF16); chosen in nn/attend.py
    paged        attention over pages of keys and values (AMX, AVX-512 BF16 or any vectors); chosen in nn/paged.py
    bpe          byte-level BPE, encoding and training; chosen in text/engine.py
    textstats    the counts that rules for the quality of text ask for; chosen in data/clean/statistics.py
    grams        look-ups in a model of byte n-grams; chosen in data/clean/grams.py
    minhash      units, n-grams and signatures of texts, and which are near; chosen in data/dedupe/words.py
"""
