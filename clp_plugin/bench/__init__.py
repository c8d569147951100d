"""Run a defense on a record under the rules of the numbers."""
