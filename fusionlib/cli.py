"""The door to the command line ``fusionlib``, which is ``companion.cli``."""

from companion.cli.app import app

__all__ = ["app"]

if __name__ == "__main__":
    app(prog_name="fusionlib")
