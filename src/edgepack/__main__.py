"""`python -m edgepack`: the command line, without the console script."""

from edgepack.cli import main

if __name__ == "__main__":
    main()
