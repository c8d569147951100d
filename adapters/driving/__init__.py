"""Drive any toolbox that is a checkout of scripts, in a process of its own."""
