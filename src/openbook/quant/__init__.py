"""Quantisation of a loaded model: what is decided here, `nn/packed.py` computes."""
