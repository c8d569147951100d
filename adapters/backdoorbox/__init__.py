"""BackdoorBox: CLP in the habit of its defenses, and records of its live attacks.

from clp_plugin.adapters.backdoorbox import CLP, live_record, save_record
"""

from .live import live_record as live_record
from .live import save_record as save_record
from .plugin_script import CLP as CLP
