"""Everything that learns: learners, block reconstruction, fine-tuning and quantization-aware training."""
