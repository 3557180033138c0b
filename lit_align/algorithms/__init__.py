"""Alignment algorithms: one LightningModule per method, found by class name."""
