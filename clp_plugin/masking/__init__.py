"""Silence the chosen channels, or cut them out (step 5)."""
