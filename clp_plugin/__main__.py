"""``python -m clp_plugin`` is ``bench``."""

from clp_plugin.cli.app import main

main()
