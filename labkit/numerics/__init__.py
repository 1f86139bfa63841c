"""What numbers cost and what they lose: formats and rounding, loss scaling, quantization, stability."""
