"""One module or folder per toolbox, each behind the :class:`~clp_plugin.adapters.base.Adapter` protocol."""
