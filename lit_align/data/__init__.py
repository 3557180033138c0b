"""Preference data: one LightningDataModule per dataset, batches as plain dicts with fixed keys."""
