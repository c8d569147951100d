"""IAB: a generator makes a trigger for each image."""
