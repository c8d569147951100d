"""SSBA: an encoder hides a message in each image."""
