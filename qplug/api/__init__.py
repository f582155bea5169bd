"""Models and data that a Python program holds: quantize, inspect, measure and compare them without files.

Importing this package does not import torch.
"""
