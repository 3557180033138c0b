"""Rewards of images and of noisy latents: one file per reward."""
