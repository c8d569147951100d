"""The built-in bench's networks."""
