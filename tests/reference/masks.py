"""What is random, from a key: the words of a counter-based generator."""

import numpy as np

_SKEIN = 0x1BD11BDA
_TURNS = [10, 26, 11, 21, 13, 27, 23, 5, 6, 20, 17, 11, 25, 10, 18, 20]


def threefry(key, counter, rounds=13):
    """Threefry-4x32 (Salmon and others, 2011): four words of a key and a counter.

    The key is two words, here in the first places; both may be arrays.
    """
    word = 2**32 - 1
    ks = [int(key[0]), int(key[1]), 0, 0]
    ks.append(_SKEIN ^ ks[0] ^ ks[1] ^ ks[2] ^ ks[3])
    X = [(np.asarray(c, np.uint64) + ks[i]) & word for i, c in enumerate(counter)]

    def mix(into, other, turn):
        X[into] = (X[into] + X[other]) & word
        X[other] = ((X[other] << turn) | (X[other] >> (32 - turn))) & word
        X[other] = X[other] ^ X[into]

    for r in range(rounds):
        one, other = _TURNS[2 * (r % 8)], _TURNS[2 * (r % 8) + 1]
        if r % 2 == 0:
            mix(0, 1, one)
            mix(2, 3, other)
        else:
            mix(0, 3, one)
            mix(2, 1, other)
        if r % 4 == 3:
            s = r // 4 + 1
            for i in range(4):
                X[i] = (X[i] + ks[(s + i) % 5] + (s if i == 3 else 0)) & word
    return X


# The last number of a mask's counters.
ZONEOUT, RECURRENT_DROPOUT, INPUT_DROPOUT, ZONEOUT_CELL = range(4)


def zoneout_of(state):
    """That of a mask of zoneout, of each of a cell's states."""
    return ZONEOUT if state == 0 else INPUT_DROPOUT + state


def hits(key, mask, probability, rows, steps, units):
    """Which elements a mask hits: booleans (rows, steps, units)."""
    n, t, j = np.indices((rows, steps, units))
    block, word = 16 * (j // 64) + j % 16, j % 64 // 16
    words = np.choose(word, threefry(key, [block, t, n, mask]))
    return words < round(probability * 2**32)


def factors(hit, probability):
    """What a dropout multiplies with."""
    return np.where(hit, 0, 1 / (1 - probability))
