"""Training-free methods: steered sampling, under `test` and `predict`."""
