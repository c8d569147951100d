"""Our own small bench: data sets, models, attacks and records that need nothing but this package's dependencies."""
