"""Reward methods without likelihoods: the denoising loss of own samples, weighted by advantages of either sign."""
