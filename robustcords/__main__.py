"""``python -m robustcords``: the same as the ``robustcords`` command."""

from robustcords.app import main
from robustcords.launching import spread

spread(["-m", "robustcords"])
main()
