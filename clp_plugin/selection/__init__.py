"""Choose the channels to prune from their scores (step 4)."""
