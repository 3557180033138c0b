"""Differentiable rewards: their gradient, taken through sampling."""
