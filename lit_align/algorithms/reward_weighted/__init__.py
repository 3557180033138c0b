"""Weighted likelihood: own samples in, their rewards as weights of the denoising loss."""
