"""Networks of full size without weights: they are run for their shapes alone, to count memory and operations."""
