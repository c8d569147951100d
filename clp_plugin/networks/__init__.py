"""Facts about networks as torch has them: kinds of modules, wrappers, architectures, devices, precision."""
