import sys

from mlx_recurrent.command.cli import main

sys.exit(main())
