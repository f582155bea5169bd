"""Block reconstruction: quantized blocks learn the outputs of the float blocks on the calibration data."""
