"""Reward models, trained from preferences."""
