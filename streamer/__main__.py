"""Entry point of `python -m streamer`: the command line of groundstream."""

from groundstream import main

if __name__ == "__main__":
    main()
