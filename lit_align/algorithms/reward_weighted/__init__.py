"""Weighted likelihood: the denoising loss of own samples, weighted by their rewards."""
