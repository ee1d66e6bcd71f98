import sys

from mlx_recurrent.cli import main

sys.exit(main())
