"""Training: learnable quantizers, block reconstruction, fine-tuning and quantization-aware training."""
