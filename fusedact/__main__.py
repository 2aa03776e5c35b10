"""`python -m fusedact`: the command line, or what it lacks."""

import sys

try:
    from fusedact.cli import app
except ModuleNotFoundError as error:
    sys.exit(f"fusedact's command line needs typer and rich ({error}): pip install typer rich")

if __name__ == "__main__":  # not when a tool that documents the package imports it
    app(prog_name="python -m fusedact")
