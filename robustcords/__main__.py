"""``python -m robustcords``: the same as the ``robustcords`` command."""

from robustcords.app import main

main()
