"""The command ``mlx-recurrent``."""
