"""`python -m lit_align fit|validate|test|predict --config NAME`."""

from lit_align.cli import main

if __name__ == "__main__":
    main()
