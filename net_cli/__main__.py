"""`python -m net_cli` is the same as `net`."""

from net_cli.main import main

if __name__ == "__main__":
    main()
