"""One module or folder per toolbox, each behind the :class:`~clp_plugin.records.adapter.ReadsRecords` protocol."""
