"""What several methods share: advantages, critics, surrogates, replay, path KL, denoising errors."""
