"""`python -m toushi …`: the command, where `toushi` is not on the path."""

from toushi import main

raise SystemExit(main())
