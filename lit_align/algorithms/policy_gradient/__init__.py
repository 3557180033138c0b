"""Online rewards: rollouts, advantages and likelihood ratios of single denoising steps."""
