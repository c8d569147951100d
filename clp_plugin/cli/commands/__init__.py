"""One module per command: parse nothing, call the library, write files, print."""
