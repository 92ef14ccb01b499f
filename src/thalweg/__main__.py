"""``python -m thalweg``."""

from thalweg.cli.main import main

if __name__ == "__main__":  # not in the worker processes of a study, which import this module
    main()
