"""A trigger of our own for a network of which nothing but the weights is known, and what it tells about the channels."""
