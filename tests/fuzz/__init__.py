"""Random calls of everything public: each is right, or raises in the argument's name.

A case is a dictionary of what was chosen, without what is the simplest choice. What
``calls`` makes is right, what ``misuse`` makes is wrong on purpose; ``cases`` draws and
judges both, ``workers`` does so in processes that may crash or hang. ``corpus`` holds
what once failed.
"""
