"""`python -m histo_export`, which is `histo`."""

from histo_export.cli import main

main()
