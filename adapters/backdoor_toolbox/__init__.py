"""backdoor-toolbox: its poisoned sets with a trained network as records, and CLP as a defense beside its own scripts."""
