"""The command line ``bench``."""
