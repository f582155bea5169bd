"""Supervised training: fine-tuning after rewrites, and quantization-aware training.

Order, augmentation and dropout depend only on the recipe's seed, the step and the image. A checkpoint therefore needs
no state of random generators. A resumed training ends with the same weights as an uninterrupted one.
"""
