"""``python -m thalweg``."""

from thalweg.cli.main import main

main()
