"""What ``accelerate launch cli.py run RECIPE`` starts: the same program as the ``robustcords`` command."""

from robustcords.app import main

if __name__ == "__main__":
    main()
