"""Short cuts of the weight arithmetic hold for every mix."""

from __future__ import annotations

import pytest

from provision.sizing.quantization_mix import BLOCK, MixShape, layer_classes, layer_type, mix_of

MIXES = sorted({mix_of(name) for name in (*BLOCK, "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S",
                                          "Q5_K_M", "IQ2_S", "IQ2_M", "IQ3_XS", "IQ3_M")} - {None})  # fmt: skip
ROLES = ("q", "k", "v", "qkv", "kv_b", "o", "gate", "up", "down", "experts_up", "experts_down", "other")


@pytest.mark.parametrize("mix", MIXES)
def test_layers_of_one_class_have_the_same_types(mix):
    for heads, experts, is_70b in ((1, 0, False), (4, 0, False), (8, 0, True), (8, 8, False), (8, 64, False)):
        shape = MixShape(layers=33, query_heads_per_kv_head=heads, experts=experts, tied=False, is_70b=is_70b)
        classes = layer_classes(mix, shape.layers)
        seen = {}
        for layer in range(shape.layers):
            types = tuple(layer_type(mix, shape, role, layer) for role in ROLES)
            assert seen.setdefault(classes[layer], types) == types
