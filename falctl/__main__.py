"""``python -m falctl`` is the command ``falctl``."""

from falctl.cli.main import main

main()
