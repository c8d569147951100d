"""TrojanZoo: a toolbox with a registry, so methods of this plugin become defenses of its own, in its own process.

from clp_plugin.adapters.trojanzoo import register
register()  # before its command line is parsed
"""

from .registration import register as register
