"""Online rewards without likelihoods: own samples, noised again, are learnt from or unlearnt."""
