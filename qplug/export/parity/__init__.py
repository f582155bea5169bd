"""Parity: whether a file computes what the quantized model computes, operation by operation."""
