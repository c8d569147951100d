"""BackdoorBench: reads its records, drives its scripts in a child process, writes files that its tools read."""
