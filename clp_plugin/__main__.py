"""``python -m clp_plugin`` is ``bench``."""

from clp_plugin.cli import main

main()
