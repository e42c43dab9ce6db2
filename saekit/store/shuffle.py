"""A seeded permutation of any length that is computed where it is needed: nothing is stored, any place is O(1).

A Feistel network over two mixed-radix digits with cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary
finite domains", the generalised Feistel cipher), with the finaliser of MurmurHash3 as its round function. NumPy only.
"""

import math

import numpy as np
from jaxtyping import Int, UInt

N_ROUNDS = 8
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_33, _32 = np.uint64(33), np.uint64(32)


class Permutation:
    """A permutation of 0 .. n-1 drawn by (`seed`, `stream`): `permutation[start:stop]` is a part of the shuffled order.

    Different streams (the loader uses epochs) are independent. `n` is at most 2^62.
    """

    def __init__(self, n: int, seed: int, stream: int = 0) -> None:
        self.n = n
        left = max(1, math.isqrt(max(0, n - 1)) + 1)
        self._left, self._right = np.uint64(left), np.uint64(-(-n // left))
        self._keys = np.random.SeedSequence(entropy=seed, spawn_key=(stream,)).generate_state(N_ROUNDS, np.uint64)

    def __len__(self) -> int:
        return self.n

    def at(self, positions: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """What stands at `positions` of the shuffled order."""
        values = self._encrypt(positions.astype(np.uint64))
        # The network permutes 0 .. left * right - 1, a little more than n: walk on until inside again.
        while len(outside := np.flatnonzero(values >= self.n)):
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, x: UInt[np.ndarray, " m"]) -> UInt[np.ndarray, " m"]:
        left, right = x // self._right, x % self._right
        for i in range(0, N_ROUNDS, 2):
            left = _add(left, _hash(right, self._keys[i], self._left), self._left)
            right = _add(right, _hash(left, self._keys[i + 1], self._right), self._right)
        return left * self._right + right


def _hash(x: UInt[np.ndarray, " m"], key: np.uint64, below: np.uint64) -> UInt[np.ndarray, " m"]:
    mixed = x ^ key
    mixed ^= mixed >> _33
    mixed *= _MIX_1
    mixed ^= mixed >> _33
    mixed *= _MIX_2
    mixed >>= _32
    mixed *= below
    mixed >>= _32
    return mixed


def _add(a: UInt[np.ndarray, " m"], b: UInt[np.ndarray, " m"], modulus: np.uint64) -> UInt[np.ndarray, " m"]:
    a += b
    return np.where(a >= modulus, a - modulus, a)
