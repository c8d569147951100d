"""Figures and tables: pure functions of plain values and stored outcomes. Nothing here imports torch."""
