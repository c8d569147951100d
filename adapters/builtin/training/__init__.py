"""The built-in bench's training loop, resumable."""
