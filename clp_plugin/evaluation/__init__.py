"""Measure a model, or many masks of it, on a record (step 6)."""
