"""Parity check: does a file compute the values of the quantized model, operation by operation?"""
