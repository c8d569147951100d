"""Read files of strangers safely, and write files that are never half there."""
