"""Read the layouts in which image data sets lie on disk."""
