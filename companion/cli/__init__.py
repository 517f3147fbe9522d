"""The command line ``fusionlib``, one module for each group of commands."""
