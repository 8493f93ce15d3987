"""`python -m artifex`."""

from artifex.cli import main

if __name__ == "__main__":
    main()
