"""Policy-gradient methods: rollouts, advantages and likelihood ratios of single denoising steps."""
