"""Supervised training: fine-tuning after rewrites, and quantization-aware training.

Order, augmentation and dropout are drawn from a seed made of the recipe's seed, the step and the image. A checkpoint
therefore holds no state of random generators, and an interrupted run ends with the same weights as one that was not.
"""
