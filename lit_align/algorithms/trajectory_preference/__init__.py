"""Preferences between trajectories, or between steps of one."""
