"""`python -m vilamp_lite` is the command."""

from vilamp_lite.cli import main

if __name__ == "__main__":  # a worker process that imports this file again must not start the command
    main()
