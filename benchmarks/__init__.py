"""The benchmark behind ``mlx-recurrent bench``: ``mlx_recurrent.benchmarks``."""
