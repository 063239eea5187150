"""`python -m medplat`: the command line, where the script is not on the path."""

from medplat.cli import main

main()
