"""Where results lie: every file name that the store knows."""

from __future__ import annotations

# Below a record, and below the folder of records: what scripts printed that came to nothing, and which those were.
LOGS = "clp_plugin_logs"
