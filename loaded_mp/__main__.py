"""`loaded-mp` and `python -m loaded_mp`."""

from loaded_mp.cli.main import main

if __name__ == "__main__":
    main()
