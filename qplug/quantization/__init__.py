"""Quantization: sites, statistics, quantizers, bit allocation, the plan, its costs, and the backends."""
