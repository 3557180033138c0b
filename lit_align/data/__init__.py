"""Datasets: one LightningDataModule each; `batch.py` says what a batch holds."""
