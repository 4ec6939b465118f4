"""The command line: one file for each command, over hilum.engine and hilum.pixels."""
