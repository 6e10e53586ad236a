"""`python -m sculpt` is the command `sculpt`."""

from .cli.app import main

main()
