"""One file per defense, each behind the :class:`~clp_plugin.defenses.base.Defense` protocol."""
