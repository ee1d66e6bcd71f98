"""Cases that failed once, with what was wrong then. Each is judged in every run."""

CORPUS = [
    # MLX's words for arrays of NumPy with a negative stride, or of another byte order.
    {
        "call": "misuse",
        "seed": 0,
        "rewritten": True,
        "argument": "lengths",
        "other form": 0,
    },
    {"call": "rnn", "seed": 0, "lengths": True, "lead": (3,), "L": 5}
    | {"form of lengths": "int64 of the other byte order"},
    {"call": "rnn", "seed": 0, "reset": True, "lead": (3,), "L": 5}
    | {"form of reset": "backwards"},
    # OverflowError.
    {"call": "misuse", "seed": 0, "argument 0": "leak", "value 0": "10**400"},
    {"call": "misuse", "seed": 0, "argument 0": "zoneout", "value 0": "-10**400"},
    {
        "call": "misuse",
        "seed": 0,
        "function": "init.spectral_radius_",
        "argument 0": "r",
        "value 0": "10**400",
    },
    # Python's limit of digits, in place of the argument's name.
    {
        "call": "misuse",
        "seed": 0,
        "argument 0": "truncate_every",
        "value 0": "10**5000",
    },
    # Ten thousand letters of a value in the error.
    {
        "call": "misuse",
        "seed": 0,
        "argument 0": "return_state",
        "value 0": "'x' * 10000",
    },
    # Was not judged where no option was given.
    {"call": "misuse", "seed": 0, "argument 0": "training", "value 0": "{1, 2}"},
    # AttributeError: a type without a module.
    {"call": "misuse", "seed": 0, "value 0": "type('Long' * 1000, (), {})()"},
    # The error was of reset, not of hidden.
    {
        "call": "misuse",
        "seed": 0,
        "function": "step",
        "with reset": True,
        "argument 0": "hidden",
        "value 0": "zeros()",
    },
    # Did not end, sometimes: MLX's sum of an empty cotangent.
    {"call": "matmul", "seed": 873787650, "dtype": "float64", "lead": (0,), "M": 1}
    | {"shape of bias": ()},
    # NumPy's words, in the name of nothing.
    {"call": "from_torch", "seed": 0, "given": "arrays", "damage": "a ragged list"},
    # Refused, where the same numbers in the machine's order are taken.
    {
        "call": "from_torch",
        "seed": 0,
        "given": "arrays",
        "damage": "of the other byte order",
    },
    # Ten thousand letters, or five thousand digits, of a name.
    {"call": "from_torch", "seed": 0, "given": "arrays", "extra": 6},
    {"call": "from_torch", "seed": 0, "given": "arrays", "extra": 7},
    {"call": "from_onnx", "seed": 0, "wrong": "one activation"},
    # "vars() argument must have __dict__ attribute".
    {"call": "misuse of torch", "seed": 0, "function": "from_torch", "value 0": "None"},
    # Python's, NumPy's and MLX's words in place of the argument's name.
    {
        "call": "misuse of torch",
        "seed": 0,
        "function": "from_torch",
        "argument 0": "nonlinearity",
        "value 0": "np.zeros(2, 'i4, i4')",
    },
    {
        "call": "misuse of torch",
        "seed": 0,
        "function": "from_torch",
        "argument 0": "nonlinearity",
        "value 0": "10**5000",
    },
    {
        "call": "misuse of onnx",
        "seed": 0,
        "argument 0": "layout",
        "value 0": "np.zeros(2)",
    },
    {
        "call": "misuse of onnx",
        "seed": 0,
        "argument 0": "layout",
        "value 0": "10**5000",
    },
    {"call": "misuse of onnx", "seed": 0, "argument 0": "opset", "value 0": "10**5000"},
    {"call": "misuse of onnx", "seed": 0, "argument 0": "path", "value 0": "object()"},
    {
        "call": "misuse of onnx",
        "seed": 0,
        "function": "from_onnx",
        "argument 0": "node",
        "value 0": "'x' * 10000",
    },
    # Taken where it is not used.
    {
        "call": "misuse",
        "seed": 0,
        "with hidden": True,
        "argument 0": "hidden0",
        "value 0": "zeros(H, complex=True)",
    },
    # A layer that runs backward was taken for one that runs forward.
    {
        "call": "to_torch",
        "seed": 693356786,
        "any kind": True,
        "kind": "Stack of Reversed",
    },
    # PyTorch's TypeError or RuntimeError, in the name of nothing.
    {"call": "from_torch", "seed": 0, "given": "state dict", "tensor": "sparse"},
    {"call": "from_torch", "seed": 0, "given": "state dict", "tensor": "negative"},
    # An error of several lines: NumPy's of two axes.
    {
        "call": "misuse",
        "seed": 0,
        "lead": (2, 3),
        "argument 0": "lengths",
        "value 0": "np.full(lead, 1, object)",
    },
    # A declared cell whose states do not depend on Wh, or not on Wx.
    {"call": "Recurrent", "seed": 1532649209, "hidden_gates": 1, "derivatives": True},
    # nanobind's words for None, which the plain call did not expect.
    {"call": "misuse", "seed": 0, "argument 0": "return_state", "value 0": "None"},
]
