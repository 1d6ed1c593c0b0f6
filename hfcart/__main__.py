"""`python -m hfcart`, and the console script."""

from hfcart.cli import main

if __name__ == "__main__":
    main()
