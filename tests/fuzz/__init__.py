"""Random calls of everything public: each is right, or raises in the argument's name.

A case is a dictionary of what was chosen, without what is the simplest choice. What
``calls`` and, of several layers, ``stacks`` make is right, what ``misuse`` makes is
wrong on purpose; ``interchange`` takes layers to other frameworks and back, ``models``
and, of ONNX, ``operators`` make layers of their models. ``cases`` draws and judges all
of them, ``workers`` does so in processes that may crash or hang. ``corpus`` holds what
once failed.
"""
