"""Find a network's linear layers by following its tensors (step 2)."""
