"""Preference methods: losses on pairs or rankings of images, stored or sampled during training; and SFT."""
