"""One module per attack, each behind :class:`~clp_plugin.adapters.builtin.attacks.base.Attack`."""
