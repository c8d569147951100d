"""Measure what explains a repair, and choose nothing: TAC, its correlation with UCLC, sweeps over u."""
