"""The hash that Envoy's hash policies use: xxHash64 with seed 0.

From its specification (Cyan4973/xxHash:doc/xxhash_spec.md), for inputs under 32 bytes only.
"""

_MASK = (1 << 64) - 1
_PRIME_1 = 0x9E3779B185EBCA87
_PRIME_2 = 0xC2B2AE3D27D4EB4F
_PRIME_3 = 0x165667B19E3779F9
_PRIME_4 = 0x85EBCA77C2B2AE63
_PRIME_5 = 0x27D4EB2F165667C5


def xxhash64(data: bytes) -> int:
    """The hash of a short key."""
    assert len(data) < 32
    hashed = (_PRIME_5 + len(data)) & _MASK
    while len(data) >= 8:
        lane = int.from_bytes(data[:8], "little")
        hashed ^= _rotate(lane * _PRIME_2 & _MASK, 31) * _PRIME_1 & _MASK
        hashed = (_rotate(hashed, 27) * _PRIME_1 + _PRIME_4) & _MASK
        data = data[8:]
    if len(data) >= 4:
        hashed ^= int.from_bytes(data[:4], "little") * _PRIME_1 & _MASK
        hashed = (_rotate(hashed, 23) * _PRIME_2 + _PRIME_3) & _MASK
        data = data[4:]
    for byte in data:
        hashed ^= byte * _PRIME_5 & _MASK
        hashed = _rotate(hashed, 11) * _PRIME_1 & _MASK
    hashed = (hashed ^ hashed >> 33) * _PRIME_2 & _MASK
    hashed = (hashed ^ hashed >> 29) * _PRIME_3 & _MASK
    return hashed ^ hashed >> 32


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _MASK
