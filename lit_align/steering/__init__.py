"""Training-free methods: hooks for a sampler's `steering`, and samplers around a sampler."""
