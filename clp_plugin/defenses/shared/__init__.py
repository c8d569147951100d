"""What several defenses need."""
