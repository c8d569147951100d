"""Keep what was measured: one JSON file an outcome (step 7)."""
