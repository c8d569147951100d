"""Attackers who know a defense: training terms that hide a backdoor from it, on top of any attack."""
