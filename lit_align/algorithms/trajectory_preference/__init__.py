"""Methods that learn from preferences between trajectories, or between candidates of one denoising step."""
