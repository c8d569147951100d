"""Records made from parts: a checkpoint, images and a trigger that lie wherever their owner keeps them."""
