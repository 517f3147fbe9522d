"""``python -m fusionlib``, and so ``accelerate launch -m fusionlib ...``."""

from fusionlib.cli import app

if __name__ == "__main__":
    app(prog_name="fusionlib")
