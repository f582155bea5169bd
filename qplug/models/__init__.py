"""Float models: their sources, and the changes made to them before quantization."""
