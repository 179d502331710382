"""Letters for pictures: printable ASCII in 5 x 7 pixels, so that pictures need no font of the system."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEIGHT", "STEP", "drawn"]

HEIGHT, STEP = 7, 6
"""Of a letter [pixel], and from one letter to the next."""

_FIRST, _LAST = " ", "~"

_COLUMNS = (
    "000000000000005f00000007000700147f147f14242a7f2a12231308646236495522500005030000001c2241000041221c00"
    "082a1c2a0808083e080800503000000808080808006060000020100804023e5149453e00427f400042615149462141454b31"
    "1814127f1027454545393c4a49493001710905033649494936064949291e0036360000005636000008142241001414141414"
    "00412214080201510906324979413e7e1111117e7f494949363e414141227f4141221c7f494949417f090909013e4149497a"
    "7f0808087f00417f41002040413f017f081422417f404040407f020c027f7f0408107f3e4141413e7f090909063e4151215e"
    "7f09192946464949493101017f01013f4040403f1f2040201f3f4038403f631408146307087008076151494543007f414100"
    "02040810200041417f0004020102044040404040000102040020545454787f484444383844444420384444487f3854545418"
    "087e0901020c5252523e7f0804047800447d40002040443d007f1028440000417f40007c041804787c080404783844444438"
    "7c14141408081414187c7c080404084854545420043f4440203c4040207c1c2040201c3c4030403c44281028440c5050503c"
    "4464544c44000836410000007f000000413608001008081008"
)
"""Five columns a letter, in the order of ASCII, as bytes whose lowest bit is the upper pixel."""

_BITS = np.unpackbits(np.frombuffer(bytes.fromhex(_COLUMNS), np.uint8).reshape(-1, 5, 1), axis=2, bitorder="little")


def drawn(text: str) -> NDArray[np.bool_]:
    """Return a line of text as pixels, shape (7, 6 for each letter); what is not ASCII is drawn as a question mark."""
    codes = [ord(letter if _FIRST <= letter <= _LAST else "?") - ord(_FIRST) for letter in text]
    pixels = np.zeros((len(codes), STEP, HEIGHT), bool)
    pixels[:, : STEP - 1] = _BITS[codes, :, :HEIGHT]
    return pixels.reshape(-1, HEIGHT).T
