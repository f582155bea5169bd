"""Block reconstruction: quantized blocks are trained to reproduce the outputs of the float blocks."""
