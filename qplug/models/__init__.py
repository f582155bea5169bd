"""Float models: where they come from, and what becomes of them before they are quantized."""
