"""Training: fine-tuning of the float model after rewrites, and quantization-aware training of the quantized one.

Whatever is random in it (order, augmentation, dropout) is drawn from a seed made of the recipe's, the step and the
image, never from what was drawn before. So a checkpoint holds no state of random generators, and a run that was stopped
ends with the weights of one that was not.
"""

from qplug.training.supervised.history import History
from qplug.training.supervised.stages import Trainer

__all__ = ["History", "Trainer"]
