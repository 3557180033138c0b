"""Parts shared by methods: advantages, critics, surrogates, replay, path KL, denoising errors."""
