"""`python -m iog.cli`, for where the `iog` script is not on the path."""

from iog.cli import main

if __name__ == "__main__":
    main(prog_name="iog")
