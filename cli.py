"""What ``accelerate launch cli.py run RECIPE`` starts: the same program as the ``robustcords`` command."""

from robustcords.__main__ import start

if __name__ == "__main__":
    start([__file__])
