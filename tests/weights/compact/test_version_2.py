"""Version 2 of the compact file, which is only read: files of the time when it was written."""

from __future__ import annotations

import base64

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.weights.compact import decode, encode
from tests.oracle import assert_same_bits
from tests.weights.compact.test_shared import BEGINNING, SHAPES, contents, some_layer

#: `contents(*SHAPES, remarks=("a remark\\nof two lines", "data: ought to be ü"))`
ALL_KINDS = base64.b85decode(
    b"WNveM00002a5+kC{24e&_xzU;p>C4c=%^UCW@KL>v~Cso&{v+oU45S%5DQI4mUk@mGuV`}Y?wenhj|&A"
    b"fJQJ5c_tEVXOW?2-!kx#?11l<`o16yhr)SEz$M8+<G!%8npqyb>0dt>)$Y05pqE6?syp=7`Xxmtng|#C"
    b"9K<yal)f(Dg78=?$gCRVLjuff%gcvv6Te*#!}h#m{S^$a30{1bQ=UUU@L(Q+u~%r096LX39Kno7=$r>w"
    b"&7rW0=hI61>R5JJRg1o&Oyz3jOlM{FpXPRAl;eHCf;xo8zPI=|e-`=W(7~O7o&#}c^l?7}SJQ)OJ5rf$"
    b"xe;NoImD3-0G>B%f>WGO?ydoKA#gg3ym~qH{{hvyr;umCYGMWDLjL|Ft$d5~M2_i?^IVf6aQls(U!OaT"
    b"!jy6XUsdV0$XDZH2?Poiskt02ZaGHj2p{OG34ZTaP~aPU9Yy#4ANtGbaR>kZK9D2"
)
#: `contents([some_layer(20, 30), some_layer(20)], remarks=("r",))`
BIASES = base64.b85decode(
    b"WNveM00002zpRyW1guXM&)pecVNK!(CkLS@fOpDnaJ`}L51JI|ei@1me5rz9VCg_WI*|E9i7Du*(t>Uh"
    b"47D5!EWW7eNTJycK)U@xW#haDzw;(jOW|v7`69({8<cq0p_|>ZwA(^0<t>!V7aEniGsouD+)l}Cy_j0l"
    b"3jh|FAXZvxbmv*>z*|~E#Lp)"
)


def test_layers_of_all_kinds() -> None:
    found = decode(ALL_KINDS)
    wanted = contents(*SHAPES, remarks=("a remark\nof two lines", "data: ought to be ü"))
    assert found.definition == wanted.definition
    assert found.remarks == wanted.remarks
    assert_same_bits(found.blobs, wanted.blobs)


def test_what_is_read_is_written_as_the_next_version() -> None:
    found = decode(BIASES)
    assert_same_bits(found.blobs, [[some_layer(20, 30), some_layer(20)]])
    raw = encode(found)
    assert raw.startswith(BEGINNING)
    assert_same_bits(decode(raw).blobs, found.blobs)


def test_damage_is_found() -> None:
    for position in range(0, len(BIASES), 3):
        spoiled = bytearray(BIASES)
        spoiled[position] ^= 1
        with pytest.raises(CaffeError):
            decode(bytes(spoiled))
    with pytest.raises(CaffeError, match="checksum"):
        decode(BIASES[:-4])
