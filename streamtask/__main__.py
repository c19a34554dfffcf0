"""`python -m streamtask` is the command line."""

from streamtask.cli import main

if __name__ == "__main__":
    main()
