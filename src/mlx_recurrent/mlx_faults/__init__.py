"""What works around a fault of MLX, each in a file that names the fault."""
