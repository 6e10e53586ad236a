"""`python -m sculpt` is the command `sculpt`."""

from .cli.start import main

main()
