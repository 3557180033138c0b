"""Offline and semi-online preference methods: pairs in, a loss on denoising errors out."""
