"""Commands that made the shipped files of the Shapes world: pipelines, preference pairs, lists of samples, rewards."""
