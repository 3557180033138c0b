"""Reward-gradient methods: backpropagate a reward, or a surrogate of it, through sampling."""
