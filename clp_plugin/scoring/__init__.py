"""Score each channel of a fused view by a bound on its Lipschitz constant (step 3)."""
