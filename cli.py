"""What ``accelerate launch cli.py run RECIPE`` starts: the same program as the ``robustcords`` command."""

from robustcords.app import main
from robustcords.launching import spread

if __name__ == "__main__":
    spread([__file__])
    main()
