"""Merkle trees: the vectors of RFC 6962's own implementation, and every path of small trees."""

import pytest

from topics.signing.merkle import inclusion_path, leaf_hash, path_root, tree_hash

# Inputs and roots of certificate-transparency's merkle tree tests (RFC 6962 hashing, SHA-256).
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                 "606162636465666768696a6b6c6d6e6f")
]  # fmt: skip
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


@pytest.mark.parametrize("count", range(1, 9))
def test_roots_are_those_of_the_standard(count: int) -> None:
    assert tree_hash([leaf_hash(each) for each in INPUTS[:count]]).hex() == ROOTS[count - 1]


@pytest.mark.parametrize("count", range(1, 20))
def test_each_leaf_has_a_path_and_no_other(count: int) -> None:
    leaves = [leaf_hash(bytes([n])) for n in range(count)]
    root = tree_hash(leaves)
    for index in range(count):
        path = inclusion_path(leaves, index)
        assert path_root(leaves[index], index, count, path) == root
        if count > 1:
            assert path_root(leaves[index - 1], index, count, path) != root
            with pytest.raises(ValueError, match="too short"):
                path_root(leaves[index], index, count, path[:-1])
        with pytest.raises(ValueError, match="too long"):
            path_root(leaves[index], index, count, [*path, root])
    with pytest.raises(ValueError, match="leaf"):
        path_root(leaves[0], count, count, [])
