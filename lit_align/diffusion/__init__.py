"""The mathematics: plain tensors in, plain tensors out."""
