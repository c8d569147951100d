"""Open a record of any known toolbox (step 1), and the port: what a toolbox's adapter offers."""
